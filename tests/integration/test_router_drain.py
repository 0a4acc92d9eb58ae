"""Listeners, and how a router ends: in order, and with nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendRefused
from modalnomad.model.routes import RouteSnapshot
from modalnomad.router import gate
from modalnomad.router.listeners import holder_of
from modalnomad.router.server import RouterServer
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support import raw
from tests.support.router import route, served, until
from tests.support.stub_replicas import PLATFORM_KEY, StubEngine, make_match

BOTH_LOOPS = True


class StubDiscovery:
    """Routes that never change."""

    def __init__(self, *hosts: str) -> None:
        matches = [make_match(tag=host.partition(".")[0], host=host) for host in hosts]
        revisions = {match.revision.id: match.revision for match in matches}
        self.cell = Cell(RouteSnapshot(tuple(match.route for match in matches), revisions, index=1))

    async def watch(self) -> AsyncIterator[RouteSnapshot]:
        """See Discovery."""
        async for snapshot in self.cell.watch():
            yield snapshot


@contextlib.asynccontextmanager
async def server(folder: Path, **settings: object) -> AsyncIterator[tuple[RouterServer, StubEngine]]:
    """Two endpoints, `a` and `b`."""
    engine = StubEngine(folder)
    router = RouterServer(
        engine=engine,
        discovery=StubDiscovery("a.localhost", "b.localhost"),  # type: ignore[arg-type]  # all the router asks of it
        settings=RouterSettings.model_validate(settings),
        scaling=ScalingSettings(),
        platform_key=PLATFORM_KEY,
    )
    await router.start()
    try:
        yield router, engine
    finally:
        async with asyncio.timeout(raw.WAIT):
            await router.stop()
            await router.stop()
            await engine.close()
    assert router.router.gate.guests == 0
    assert router.router.gate.tasks.running == 0


async def test_first_request_wakes_a_replica_and_is_answered(tmp_path: Path) -> None:
    async with server(tmp_path) as (router, engine), raw.client(router.port) as client:
        assert (await client.request(raw.get("/", "a.localhost"))).status == 200
        assert len(engine.started) == 1
        assert (await client.request(raw.get("/.modalnomad/drain", "a.localhost"))).status == 404


async def test_direct_port_is_bound_to_its_host(tmp_path: Path) -> None:
    async with server(tmp_path) as (router, engine):
        port = await router.direct_port("b.localhost")
        assert port != router.port
        assert await router.direct_port("b.localhost") == port
        async with raw.client(port) as client:
            for host in (f"127.0.0.1:{port}", "a.localhost"):
                assert (await client.request(raw.get("/", host))).status == 200
            (b,) = engine.started
            assert b.pool.revision == router.router.table.match("b.localhost").revision.id
            assert (await client.request(b"GET / HTTP/1.1\r\n\r\n")).status == 400
        await router.close_direct("b.localhost")
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_port_that_is_taken_names_its_holder(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BackendRefused, match=rf"127\.0\.0\.1:{port}.*process \d+") as refused:
            async with server(tmp_path, port=port):
                pass
        assert refused.value.hint


def test_the_holder_of_a_port_may_have_any_name() -> None:
    """The system cuts names to 15 bytes, also within a letter."""
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    comm.write_bytes("a-shop-of-büros".encode()[:10] + b"\xc3")
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            assert (holder_of(taken.getsockname()[1]) or "").startswith("a-shop-of-\ufffd (process ")
    finally:
        comm.write_bytes(before.strip())


def test_the_holder_of_a_port_is_found_though_another_descriptor_of_it_closes_meanwhile() -> None:
    """The list of this process's own descriptors is read through one that is closed when they are looked at."""
    lower = os.open(os.devnull, os.O_RDONLY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        os.close(lower)
        assert f"(process {os.getpid()})" in (holder_of(taken.getsockname()[1]) or "")


async def test_waiting_request_is_told_when_the_router_stops(tmp_path: Path) -> None:
    async with server(tmp_path, drain_timeout=0.1) as (router, engine), raw.client(router.port) as client:
        engine.on_start = lambda stub: None
        await client.send(raw.get("/", "a.localhost"))
        await until(lambda: engine.started)
        stopping = asyncio.ensure_future(router.stop())
        answer = await client.response()
        assert (answer.status, answer["modalnomad-error"], answer["connection"]) == (503, "draining", "close")
        await stopping


async def test_clients_the_system_let_in_are_told_when_the_router_stops(tmp_path: Path) -> None:
    """A socket that is closed resets whoever waits in its queue, with a request on its way."""
    async with server(tmp_path) as (router, engine), contextlib.AsyncExitStack() as stack:
        waiting = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(20)]  # the loop stands still
        for sock in waiting:
            stack.enter_context(sock)
            sock.sendall(raw.get("/", "a.localhost"))
        await router.stop()
        for sock in waiting:
            sock.settimeout(raw.WAIT)
            head = await asyncio.to_thread(sock.recv, 65536)
            assert head.startswith(b"HTTP/1.1 503 "), head
            assert b"modalnomad-error: draining" in head.lower()
        assert not engine.started


async def test_a_router_without_a_free_file_stops_listening_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    async with server(tmp_path) as (router, _):
        monkeypatch.setattr("modalnomad.router.listeners.os.dup", full)
        port = router.port
        await router.drain()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_idle_clients_have_a_moment_to_hear_that_the_router_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "FAREWELL", 60.0)  # how long it is, is nobody's promise
    async with server(tmp_path) as (router, _), raw.client(router.port) as asking, raw.client(router.port) as quiet:
        for client in (asking, quiet):
            assert (await client.request(raw.get("/", "a.localhost"))).status == 200
        stopping = asyncio.ensure_future(router.stop())
        await until(lambda: router.router.gate.draining)
        answer = await asking.request(raw.get("/", "a.localhost"))
        assert (answer.status, answer["modalnomad-error"], answer["connection"]) == (503, "draining", "close")
        assert not stopping.done()
        stopping.cancel()  # the moment is over
        await asyncio.wait([stopping])
        await router.stop(wait=False)
        assert await quiet.at_end() == b""


async def test_idle_clients_are_closed_after_that_moment(tmp_path: Path) -> None:
    async with server(tmp_path) as (router, _), raw.client(router.port) as quiet:
        assert (await quiet.request(raw.get("/", "a.localhost"))).status == 200
        stopping = asyncio.ensure_future(router.stop())
        assert await quiet.at_end() == b""
        await stopping


async def test_drain_lets_running_requests_finish_and_refuses_new_ones() -> None:
    async with (
        raw.replica(raw.waits) as backend,
        served(backend.address) as router,
        raw.client(router.port) as busy,
        raw.client(router.port) as idle,
        raw.client(router.port) as late,
    ):
        await idle.request(raw.get(host="nobody.localhost"))
        await late.send(b"GET / HTTP/1.1\r\n")
        await busy.send(raw.get() + raw.get("/second"))
        async with asyncio.timeout(raw.WAIT):
            await backend.arrived.wait()
        await until(lambda: router.router.gate.guests == 3)
        router.router.gate.drain()
        assert await idle.at_end() == b""
        assert not await router.router.gate.empty(0.05)
        answer = await late.request(b"Host: app.localhost\r\n\r\n")
        assert (answer.status, answer["connection"]) == (503, "close")
        assert json.loads(answer.body)["code"] == "draining"
        backend.release.set()
        answer = await busy.response()
        assert (answer.status, answer["connection"]) == (200, "close")
        assert await busy.at_end() == b"", "what was sent ahead is not answered after `Connection: close`"
        assert len(backend.requests) == 1
        assert await router.router.gate.empty(raw.WAIT)


async def test_whole_answer_arrives_although_the_router_stops() -> None:
    body = bytes(3_000_000)
    async with (
        raw.replica(raw.says(raw.answer(body))) as backend,
        served(backend.address) as router,
        raw.client(router.port, limit=2**10) as client,
    ):
        await client.send(raw.get())
        assert (await client.head()).status == 200
        router.router.gate.drain()
        emptied = asyncio.ensure_future(router.router.gate.empty(raw.WAIT))
        assert await client.reader.readexactly(len(body)) == body
        assert await emptied


async def test_what_outlasts_the_drain_is_cut() -> None:
    async with (
        raw.replica(raw.never_answers) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        await client.send(raw.get())
        async with asyncio.timeout(raw.WAIT):
            await backend.arrived.wait()
        router.router.gate.drain()
        assert not await router.router.gate.empty(0.1)
        await router.router.gate.close()
        assert await client.at_end() == b""
        async with asyncio.timeout(raw.WAIT):
            await backend.left.wait()


async def test_route_swap_takes_effect_for_the_next_request() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        assert (await client.request(raw.get())).status == 200
        other, revision = route(host="other.localhost")
        table = type(router.router.table)
        router.router.table = table.build(RouteSnapshot((other,), {revision.id: revision}))
        assert (await client.request(raw.get())).status == 404
        assert (await client.request(raw.get(host="other.localhost"))).status == 200
