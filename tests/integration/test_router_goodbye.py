"""WebSockets when the router stops: both sides are told, between two frames, and have a moment to answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
import websockets

from modalnomad.model.replica import TcpAddress
from tests.support import raw
from tests.support.handshake import handshake, switch, switches
from tests.support.router import served, until

BOTH_LOOPS = True

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talks(talk: Talk) -> raw.Script:
    """Accepts the WebSocket, then does as it is told."""

    async def script(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(switch())
        await talk(reader, writer)

    return script


async def test_clients_are_told_to_come_back_and_replicas_that_they_left() -> None:
    """A client and a server that keep to the protocol, one of them somebody else's."""
    closed: list[tuple[int | None, str]] = []

    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)
        closed.append((connection.close_code, connection.close_reason or ""))

    async with websockets.serve(echo, "127.0.0.1", 0, compression=None) as server:
        address = TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])
        async with served(address) as router:
            async with websockets.connect("ws://app.localhost/ws", host="127.0.0.1", port=router.port) as client:
                await client.send("hello" * 100)
                assert await client.recv() == "hello" * 100
                router.router.gate.drain()
                with pytest.raises(websockets.ConnectionClosed) as told:
                    await client.recv()
                assert told.value.rcvd is not None
                assert (told.value.rcvd.code, told.value.rcvd_then_sent) == (1012, True)
            await until(lambda: closed)
            assert closed == [(1001, "")]
            assert await router.router.gate.empty(raw.WAIT)
            await router.quiet()


async def test_the_goodbye_does_not_wait_for_those_who_never_answer() -> None:
    async with raw.replica(switches) as backend, served(backend.address) as router, raw.client(router.port) as client:
        assert (await client.request(handshake())).status == 101
        router.router.gate.drain()
        assert router.router.gate.guests == 1
        assert await router.router.gate.empty(raw.WAIT)
        assert await client.at_end() == b"\x88\x02\x03\xf4"
        await router.quiet()
        async with asyncio.timeout(raw.WAIT):
            await backend.left.wait()


async def test_nothing_is_put_into_the_middle_of_a_frame() -> None:
    half = b"\x82\x7e\x01\x00" + b"x" * 100  # of 256

    async def stops_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(half)
        assert (await reader.read())[:2] == b"\x88\x82"

    async with (
        raw.replica(talks(stops_in_the_middle)) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(handshake())).status == 101
        received = await client.reader.readexactly(len(half))
        router.router.gate.drain()
        assert received + await client.at_end() == half
        await router.quiet()


async def test_who_said_goodbye_before_is_not_told_again() -> None:
    goodbye = b"\x88\x02\x03\xe8"

    async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(goodbye)
        await reader.read()

    async with (
        raw.replica(talks(leaves)) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(handshake())).status == 101
        assert await client.reader.readexactly(4) == goodbye
        router.router.gate.drain()
        assert await client.at_end() == b""
        await router.quiet()


async def test_what_comes_after_the_goodbye_is_passed_to_nobody() -> None:
    heard = bytearray()

    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            heard.extend(data)

    async with (
        raw.replica(talks(listens)) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(handshake())).status == 101
        router.router.gate.drain()
        assert await client.reader.readexactly(4) == b"\x88\x02\x03\xf4"
        with contextlib.suppress(ConnectionError):  # a second later it has hung up
            await client.send(b"\x82\x85mask\x05\x04\x1f\x07\x02")
            await client.send(b"\x88\x82mask\x6e\x95")
        assert await client.at_end() == b""
        await router.quiet()
    assert bytes(heard[:2]) == b"\x88\x82"
    assert len(heard) == 8


@pytest.mark.parametrize("side", ["client", "replica"])
async def test_a_line_that_was_shut_takes_no_goodbye_and_the_others_get_theirs(side: str) -> None:
    """One side sends no more, so the way to the other side is shut too."""
    shut, over = asyncio.Event(), asyncio.Event()

    async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if side == "replica":
            writer.write_eof()
        else:
            await reader.read()
            shut.set()
        await over.wait()

    async with (
        raw.replica(talks(replica)) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(handshake())).status == 101
        async with asyncio.timeout(raw.WAIT):
            if side == "client":
                client.writer.write_eof()
                await shut.wait()
            else:
                await client.reader.read()
        router.router.gate.drain()
        over.set()
        assert await router.router.gate.empty(raw.WAIT)
        await router.quiet()
