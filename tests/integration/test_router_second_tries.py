"""What is tried again and what is not, and what a failure says about a replica."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
from pathlib import Path
from typing import cast

import pytest

from modalnomad.kit.tasks import Tasks
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey, TcpAddress, UnixAddress
from modalnomad.router import channels
from modalnomad.router.channel import Channel
from modalnomad.router.http1 import parse_request
from modalnomad.router.replies import Reply
from modalnomad.router.request import Exchange
from modalnomad.router.table import Match
from modalnomad.router.upstream import TryElsewhere, raise_for
from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.handshake import handshake
from tests.support.router import StubLease, route, served, until

BOTH_LOOPS = True


async def test_a_replica_that_stays_full_is_waited_for() -> None:
    refusals = 15

    async def full_for_a_while(
        backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await (raw.busy if backend.connections <= refusals else raw.polite)(backend, reader, writer)

    async with (
        raw.replica(full_for_a_while) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(raw.post(b"hello"))).body == b"hello"
        assert len(router.activator.leases) == refusals + 1


async def test_a_replica_that_is_full_for_good_ends_the_wait_after_the_queue_timeout() -> None:
    settings = RouterSettings(queue_timeout=0.3)
    async with (
        raw.replica(raw.busy) as backend,
        served(backend.address, settings=settings) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(raw.get())
        assert (answer.status, answer["modalnomad-error"]) == (503, "queue_timeout")
        assert answer["retry-after"] == "1"


@pytest.mark.parametrize("turns", range(8))
async def test_a_request_that_crosses_with_the_goodbye_of_a_replica_goes_elsewhere_whatever_it_is(turns: int) -> None:
    """A runner that ends refuses what may be on its way, on connections that are kept (its last word on each)."""

    async def leaves(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if backend.connections > 1:
            await raw.polite(backend, reader, writer)
        await backend.read(reader)
        writer.write(raw.answer())
        await backend.release.wait()
        writer.write(raw.answer(b"", "503 Service Unavailable", "Modalnomad-Busy: 1", "Connection: close"))

    async with (
        raw.replica(leaves) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(raw.get())).status == 200
        await client.send(raw.post(b"hello"))
        for _ in range(turns):
            await asyncio.sleep(0)
        backend.release.set()
        assert (await client.response()).body == b"hello"


@pytest.mark.parametrize("request_", [raw.get(), handshake()], ids=["GET", "WebSocket"])
async def test_a_connection_to_a_web_server_ends_with_its_request(request_: bytes) -> None:
    """It holds a place in the replica, whatever the user's server thinks of keeping it."""
    async with (
        raw.replica(raw.says(raw.answer(b"no", "403 Forbidden"), close=False)) as backend,
        served(backend.address, routes=[route(kind="web_server")]) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(request_)).status == 403
        await until(lambda: router.upstream.connections == (0, 0))


@pytest.mark.parametrize("begun", [False, True])
async def test_a_replica_whose_request_ran_over_its_time_is_under_suspicion(begun: bool) -> None:
    async def slow(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read(reader)
        if begun:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await reader.read()

    async with (
        raw.replica(slow) as backend,
        served(backend.address, routes=[route(timeout=0.3)]) as router,
        raw.client(router.port) as client,
    ):
        await client.send(raw.get())
        await client.head()
        await router.quiet()
        assert router.activator.leases[0].events == ["gone"]


PUT = b"PUT / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    ("request_", "status"),
    [(raw.get(), 200), (raw.post(b""), 502), (raw.post(b"hello"), 502), (PUT, 502)],
    ids=["GET", "POST", "POST with a body", "PUT with a body"],
)
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_request_that_nobody_read_goes_elsewhere_if_it_may_run_twice(
    request_: bytes, status: int, unix: bool, tmp_path: Path
) -> None:
    """A replica that is killed while it is connected to and does not read. Of a body it may have read a part."""
    listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    with listener:
        listener.bind(str(tmp_path / "deaf") if unix else ("127.0.0.1", 0))
        listener.listen()
        address = UnixAddress(str(tmp_path / "deaf")) if unix else TcpAddress(*listener.getsockname())
        async with (
            raw.replica(raw.polite) as backend,
            served(address, backend.address) as router,
            raw.client(router.port) as client,
        ):
            await client.send(request_)
            deaf, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(select.select, (deaf,), (), (), raw.WAIT)
            deaf.close()
            assert (await client.response()).status == status
            assert [lease.events for lease in router.activator.leases] == [["gone"], []][: 1 + (status == 200)]
            assert router.router.gate.counters.retries == ({"gone": 1} if status == 200 else {})


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_request_that_ends_every_replica_it_comes_to_ends_two_of_them(unix: bool, tmp_path: Path) -> None:
    """On kept connections it looks as if those were closed already; on a new one it does not."""
    ended = 0

    async def mortal(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        while "/end" not in (await backend.read(reader)).line:
            writer.write(raw.answer())
            await writer.drain()
        ended += 1

    async with contextlib.AsyncExitStack() as stack:
        paths = [tmp_path / str(number) if unix else None for number in range(5)]
        replicas = [await stack.enter_async_context(raw.replica(mortal, unix=path)) for path in paths]
        addresses = [backend.address for backend in replicas]
        router = await stack.enter_async_context(served(*addresses, *addresses))
        client = await stack.enter_async_context(raw.client(router.port))
        for _ in addresses:
            assert (await client.request(raw.get())).status == 200
        assert router.upstream.connections == (5, 5)

        answer = await client.request(raw.get("/end"))

        assert (answer.status, answer["modalnomad-error"]) == (502, "replica_gone")
        assert ended == 2
        assert [lease.events for lease in router.activator.leases[5:]] == [[], ["gone"]]
        assert router.router.gate.counters.retries == {"stale": 1}


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
async def test_a_replica_that_read_a_part_of_the_first_write_may_have_run_it(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of that write fails like a write to a connection that was closed long before."""
    monkeypatch.setattr(channels, "_watch", lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096))
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        address = TcpAddress(*listener.getsockname())
        async with (
            raw.replica(raw.polite) as backend,
            served(*[address] * (1 + kept), backend.address) as router,
            raw.client(router.port) as client,
        ):
            await client.send(raw.get() if kept else raw.post(b"x" * 60_000))
            ours, _ = await loop.sock_accept(listener)
            with ours:
                ours.setblocking(False)
                if kept:
                    await loop.sock_recv(ours, 65536)
                    await loop.sock_sendall(ours, raw.answer())
                    assert (await client.response()).status == 200
                    await client.send(raw.post(b"x" * 60_000))
                read = len(await loop.sock_recv(ours, 65536))
                with contextlib.suppress(BlockingIOError):
                    while data := ours.recv(65536):
                        read += len(data)
            assert 0 < read < 60_000
            assert (await client.response()).status == 502
            assert router.activator.leases[-1].events == ["gone"]
            assert backend.connections == 0


async def test_a_connection_that_closes_as_it_is_made_took_no_request() -> None:
    """As of a server that is out of descriptors: accepted and closed at once, before anything came or just after."""
    closed = 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def hang_up() -> None:
            nonlocal closed
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    closed += 1

        async with Tasks("test") as tasks, raw.replica(raw.polite) as backend:
            hanging = tasks.spawn(asyncio.to_thread(hang_up), "hangs up")
            try:
                for _ in range(20):
                    async with (
                        served(TcpAddress(*listener.getsockname()), backend.address) as router,
                        raw.client(router.port) as client,
                    ):
                        assert (await client.request(raw.get())).status == 200
                        assert router.router.gate.counters.retries == {"gone": 1}
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                await hanging
    assert closed == 20


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize(
    ("error", "writes", "again"),
    [
        (BrokenPipeError(), 1, True),
        (BrokenPipeError(), 2, False),
        (ConnectionResetError("closed"), 0, True),
        (ConnectionResetError("closed"), 1, False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 1, False),
    ],
)
async def test_what_may_not_run_twice_is_repeated_only_when_it_was_never_written(
    error: ConnectionError, writes: int, again: bool, uses: int
) -> None:
    head = parse_request(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
    exchange = Exchange(cast("object", None), head, cast("object", None), cast("object", None), body_limit=0)  # type: ignore[arg-type]
    channel = Channel(UnixAddress("/nowhere"), lambda channel: None, lambda channel: None)
    channel.uses, channel.writes = uses, writes
    match = Match(*route())
    lease = StubLease(ReplicaKey(PoolKey(RevisionId("r")), 0, 1), channel.address, match)
    with pytest.raises(TryElsewhere if again else Reply) as raised:
        raise_for(error, exchange, lease, channel)
    stale = isinstance(raised.value, TryElsewhere) and raised.value.reason == "stale"
    assert stale is (again and uses > 1)
    assert lease.events == ([] if stale else ["gone"])
