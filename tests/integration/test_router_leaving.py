"""Clients that leave, half or whole, at every moment of a request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest

from modalnomad.model.replica import TcpAddress
from tests.support import raw
from tests.support.router import Served, served, until

BOTH_LOOPS = True


async def waiting(router: Served, request: bytes, client: raw.Client) -> None:
    """The request is in the queue."""
    router.activator.ready.clear()
    await client.send(request)
    await until(lambda: router.activator.waiting == 1)


@pytest.mark.parametrize("request_", [raw.get(), raw.post(b"body"), raw.post(bytes(1_000_000))],
                         ids=["GET", "small body", "large body"])  # fmt: skip
@pytest.mark.parametrize("reset", [False, True])
async def test_client_that_vanishes_while_queued_frees_its_ticket(request_: bytes, reset: bool) -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        router.activator.ready.clear()
        client.writer.write(request_)
        await until(lambda: router.activator.waiting == 1)
        if reset:
            client.abort()
        else:
            client.writer.close()
        await until(lambda: router.activator.waiting == 0)
        assert backend.connections == 0


async def test_http10_client_that_closes_its_side_while_queued_is_gone() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await waiting(router, b"GET / HTTP/1.0\r\nHost: app.localhost\r\n\r\n", client)
        client.writer.write_eof()
        await until(lambda: router.activator.waiting == 0)


async def test_half_closed_client_gets_its_answer_after_the_wait() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await waiting(router, raw.post(b"hello"), client)
        client.writer.write_eof()
        interim = await client.head()
        assert interim.status == 100
        await asyncio.sleep(0.2)
        assert router.activator.waiting == 1
        router.activator.ready.set()
        answer = await client.response()
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer["connection"] == "close"
        assert await client.at_end() == b""


async def test_half_closed_client_while_the_replica_thinks() -> None:
    async with raw.replica(raw.waits) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.get())
        client.writer.write_eof()
        async with asyncio.timeout(raw.WAIT):
            await backend.arrived.wait()
        backend.release.set()
        assert (await client.response()).status == 200


async def test_client_that_leaves_while_the_replica_thinks() -> None:
    async with (
        raw.replica(raw.never_answers) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        await client.send(raw.get())
        async with asyncio.timeout(raw.WAIT):
            await backend.arrived.wait()
            client.writer.close()
            await backend.left.wait()
        await router.quiet()
        assert router.activator.released == 1


async def test_client_that_leaves_in_the_middle_of_its_body() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 10\r\n\r\nhalf")
        async with asyncio.timeout(raw.WAIT):
            await backend.arrived.wait()
            client.abort()
            await backend.left.wait()
        await router.quiet()


async def endless(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await backend.read(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"5\r\nhello\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("reset", [False, True])
async def test_client_that_leaves_in_the_middle_of_an_answer(reset: bool) -> None:
    async with raw.replica(endless) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.get())
        assert (await client.head()).status == 200
        if reset:
            client.abort()
        else:
            client.writer.close()
        async with asyncio.timeout(raw.WAIT):
            await backend.left.wait()
        await router.quiet()


async def test_client_that_leaves_a_silent_stream() -> None:
    async def silent(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await reader.read(1)
        backend.left.set()

    async with raw.replica(silent) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.get())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"hello"
        client.writer.close()
        async with asyncio.timeout(raw.WAIT):
            await backend.left.wait()
        await router.quiet()


async def test_client_that_leaves_before_its_turn_in_a_pipeline() -> None:
    async with raw.replica(raw.waits) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.get("/1") + raw.get("/2"))
        async with asyncio.timeout(raw.WAIT):
            await backend.arrived.wait()
        client.abort()
        await router.quiet()
        assert len(backend.requests) == 1


async def test_thousand_connections_that_come_and_go_leave_nothing() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router:

        async def visit(number: int) -> None:
            async with raw.client(router.port) as client:
                client.writer.write(raw.get() if number % 3 else b"GET / HT")
                if number % 2:
                    client.abort()
                elif number % 3:
                    assert (await client.response()).status == 200

        for start in range(0, 1000, 50):
            await asyncio.gather(*(visit(start + number) for number in range(50)))
        await until(lambda: router.router.gate.guests == 0)
        assert router.activator.waiting == router.activator.running == 0


async def test_reset_and_answer_in_the_same_moment(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with served(TcpAddress("127.0.0.1", listener.getsockname()[1])) as router:
            client = socket.create_connection(("127.0.0.1", router.port))
            client.sendall(raw.get())
            replica, _ = await loop.sock_accept(listener)
            with replica:
                replica.setblocking(False)
                assert await loop.sock_recv(replica, 65536)
                await loop.sock_sendall(replica, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                client.setblocking(False)
                assert await loop.sock_recv(client, 65536)
                # Both are there before the router's loop looks again.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                with contextlib.suppress(ConnectionError):
                    for _ in range(10):
                        replica.send(b"5\r\nhello\r\n")
                        await asyncio.sleep(0)
                await router.quiet()
    assert [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
