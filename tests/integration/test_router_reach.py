"""Between the router and its replicas over TCP: before they listen, after a limit of our own, when ending fails."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from modalnomad.model.replica import Failure, PoolKey, ReplicaKey, TcpAddress
from modalnomad.router import actions, probe
from modalnomad.router.channels import Channels
from modalnomad.router.probe import Prober
from modalnomad.router.telemetry import Counters
from tests.support.activator import Opener, pool_of, use
from tests.support.router import until
from tests.support.scaling import scaled
from tests.support.stub_replicas import PLATFORM_KEY, StubReplica, make_match

STEADY_LOOP = True

MATCH = make_match()


def pretend(stub: StubReplica) -> None:
    stub.name = "somebody else"
    stub.is_ready.set()


async def test_a_replica_is_asked_until_its_port_accepts_and_a_stranger_there_does_not_pass(tmp_path: Path) -> None:
    async with scaled(tmp_path) as platform:
        platform.engine.tcp = platform.engine.late = True
        platform.engine.on_start = pretend
        await platform.serve(MATCH)
        asking = asyncio.get_running_loop().create_task(platform.ask(MATCH))
        await until(lambda: platform.router.counters.connects >= 5)
        (stub,) = platform.engine.stubs.values()
        assert not asking.done()
        await stub.listen()
        await until(lambda: stub.asked)
        assert platform.load(MATCH).ready == 0, "its own name was not on the answer"
        stub.name = ""
        assert (await asking).status == 200
        await stub.close()
        stub.sock = None


async def test_connections_to_tcp_replicas_send_at_once_and_notice_a_machine_that_vanished() -> None:
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
        channels = Channels(5.0, counters=Counters())
        channel = await channels.connect(TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1]))
        sock = channel.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 30
        await channels.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL])
async def test_a_limit_of_our_own_is_no_strike_against_the_replica(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_more(*args: Any, **options: Any) -> Any:
        raise OSError(number, "no more")

    async with scaled(tmp_path) as platform:
        await platform.serve(MATCH)
        assert (await platform.ask(MATCH)).status == 200
        with monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "create_unix_connection", no_more)
            answer = await platform.ask(MATCH)
        assert (answer.status, answer["modalnomad-error"]) == (503, "too_many_connections")
        assert answer["retry-after"] == "1"
        assert platform.load(MATCH).ready == 1
        assert (await platform.ask(MATCH)).status == 200
        assert len(platform.engine.started) == 1


async def test_a_replica_that_could_not_be_ended_is_ended_later(
    open_platform: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(actions, "KILL_PAUSE", 0.001)
    platform, match = await open_platform(), make_match(startup_timeout=0.1, max_containers=1)
    platform.route(match)
    platform.engine.kill_fails = 9
    platform.engine.on_start = lambda stub: None
    with caplog.at_level(logging.ERROR, "modalnomad.router"), pytest.raises(Exception, match="startup_timeout"):
        await use(platform, match)
    await platform.until(lambda: len(platform.engine.killed) == 10)
    await platform.until(lambda: platform.activator.load(match.revision.id).leaving == 0)
    assert len([line for line in caplog.messages if "answered 500" in line]) == 4, "the 1st, 2nd, 4th, 8th"
    platform.engine.on_start = lambda stub: stub.is_ready.set()
    await use(platform, match)


async def test_nothing_is_ended_any_more_that_ended_by_itself(
    open_platform: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "KILL_PAUSE", 0.05)
    platform, match = await open_platform(), make_match(startup_timeout=0.1)
    platform.route(match)
    platform.engine.kill_fails = 1000
    platform.engine.on_start = lambda stub: None
    with pytest.raises(Exception, match="startup_timeout"):
        await use(platform, match)
    await platform.until(lambda: platform.engine.killed)
    key = platform.engine.killed[0]
    await platform.engine.end(key, Failure("replica_gone", "signal 9"))
    await platform.until(lambda: platform.activator.load(match.revision.id).leaving == 0)
    tries = len(platform.engine.killed)
    await asyncio.sleep(0.15)  # three times the pause
    assert len(platform.engine.killed) <= tries + 1


async def test_trying_to_connect_slows_down_with_time_and_with_how_many_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, pauses = [0.0], list[float]()

    async def refused(*args: object) -> Any:
        raise ConnectionRefusedError

    async def paused(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds
        if len(pauses) == 400:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", paused)
    prober = Prober(cast(Any, refused), PLATFORM_KEY, lambda: now[0])
    key = ReplicaKey(PoolKey(MATCH.revision.id), 0, 1)
    with pytest.raises(asyncio.CancelledError):
        await prober.ready(key, TcpAddress("127.0.0.1", 1))
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (probe.FIRST_PAUSE, probe.LONGEST_PAUSE)
    assert sum(1 for total in _sums(pauses) if total < 0.1) > 30, "often as long as a start takes"
    prober._pausing, pauses[:] = 99, []
    now[0] = 0.0
    with pytest.raises(asyncio.CancelledError):
        await prober.ready(key, TcpAddress("127.0.0.1", 1))
    assert pauses[0] == 100 / probe.MOST_TRIES


def _sums(values: list[float]) -> list[float]:
    total, found = 0.0, []
    for value in values:
        total += value
        found.append(total)
    return found


async def test_no_room_told_later_is_waited_out_while_something_of_ours_is_on_its_way_out(
    open_platform: Opener,
) -> None:
    platform = await open_platform()
    old, new = make_match(tag="f", host="f.localhost"), make_match(tag="g", host="g.localhost")
    platform.route(old, new)
    first = await use(platform, old)
    platform.engine.stubs[first.key].running = 0
    platform.engine.failure = Failure("no_capacity", "no node has a GPU left")
    waiting = asyncio.get_running_loop().create_task(use(platform, new))
    await platform.engine.stubs[first.key].drained.wait()  # the idle one makes room, but takes its time
    await platform.until(lambda: len([key for key in platform.engine.started if key.pool == pool_of(new)]) > 1)
    assert not waiting.done()
    await platform.engine.end(first.key)
    late = await platform.engine.begin(next(key for key in platform.engine.started if key.pool == pool_of(new)))
    assert (await waiting).key == late.key, "the start that had failed got its place"
