"""Clients that do not read what they asked for: what they cost, and that the router still ends."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from modalnomad.router.connection import HEAD, Connection
from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.handshake import handshake, switch
from tests.support.router import Served, route, served, until

BOTH_LOOPS = True

LARGE = bytes(200_000)
FITS = bytes(50_000)
"""Less than a transport takes before it says that it is full: an answer that begins to be taken is taken whole."""


def deaf(port: int) -> socket.socket:
    """A client with little room for answers; nobody reads them."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def connections(router: Served) -> list[Connection]:
    return [guest for guest in router.router.gate._guests if isinstance(guest, Connection)]


async def answered_but_not_taken(router: Served, sock: socket.socket) -> Connection:
    """Requests one after the other, until the end of an answer finds no room in the system's buffers."""
    loop = asyncio.get_running_loop()
    for _ in range(2000):
        sent = router.activator.released + 1
        await loop.sock_sendall(sock, raw.get())
        await until(lambda sent=sent: router.activator.released == sent)
        (connection,) = connections(router)
        await until(lambda connection=connection: connection._state == HEAD)
        if connection._transport.get_write_buffer_size():
            return connection
    raise AssertionError("the system's buffers have no end")


async def test_a_router_ends_although_a_client_does_not_read() -> None:
    async with raw.replica(raw.says(raw.answer(FITS), close=False)) as backend, served(backend.address) as router:
        with deaf(router.port) as sock:
            await answered_but_not_taken(router, sock)
            router.router.gate.drain()
            assert not await router.router.gate.empty(0.1)
            async with asyncio.timeout(raw.WAIT):
                await router.router.gate.close()


async def test_an_answer_nobody_takes_is_given_up_after_the_idle_timeout() -> None:
    settings = RouterSettings(idle_timeout=300)
    async with (
        raw.replica(raw.says(raw.answer(FITS), close=False)) as backend,
        served(backend.address, settings=settings) as router,
    ):
        with deaf(router.port) as sock:
            connection = await answered_but_not_taken(router, sock)
            now = router.router.gate.clock()
            connection.tick(now + 290)
            await asyncio.sleep(0)
            assert router.router.gate.guests == 1
            connection.tick(now + 301)  # it closes, for who takes what was written
            connection.tick(now + 700)
            await until(lambda: router.router.gate.guests == 0)


async def test_a_router_ends_although_a_websocket_client_does_not_read() -> None:
    async def floods(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(switch())
        while True:
            writer.write(LARGE)
            await writer.drain()

    async with raw.replica(floods) as backend, served(backend.address) as router:
        with deaf(router.port) as sock:
            await asyncio.get_running_loop().sock_sendall(sock, handshake())
            await until(lambda: router.router.gate.counters.websockets == 1)
            (tunnel,) = router.router.gate._guests
            client = cast("asyncio.Transport", tunnel._client.transport)  # type: ignore[attr-defined]
            await until(client.get_write_buffer_size)
            router.router.gate.drain()
            async with asyncio.timeout(raw.WAIT):
                await router.router.gate.close()


async def test_requests_are_not_answered_faster_than_answers_are_taken() -> None:
    count = 15_000
    async with served(routes=[route()]) as router:
        loop, counters = asyncio.get_running_loop(), router.router.gate.counters
        with deaf(router.port) as sock:
            await loop.sock_sendall(sock, raw.get(host="nobody.localhost") * count)
            seen = -1
            while seen != counters.requests:
                seen = counters.requests
                await asyncio.sleep(0.3)
            assert 0 < seen < count
            assert connections(router)[0]._transport.get_write_buffer_size() < 256 * 1024
            taken = 0
            while taken < count:
                taken += (await loop.sock_recv(sock, 2**20)).count(b"}")
            await until(lambda: counters.requests == count)
