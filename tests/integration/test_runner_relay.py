"""The relay in front of a `web_server`, in this process: servers and routers that close early, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk.runner.door_answers import Porter
from modalnomad_sdk.runner.doors import Doors
from modalnomad_sdk.runner.relay import Relay, Target

from tests.support import raw
from tests.support.router import until

BOTH_LOOPS = True

TICKET = "t" * 64
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Relayed:
    """A relay before one user's server."""

    path: str
    doors: Doors
    failures: list[dict[str, Any]] = field(default_factory=list)
    after: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    """What ends behind it."""

    async def connect(self) -> raw.Client:
        return raw.Client(*await asyncio.open_unix_connection(self.path))


@contextlib.asynccontextmanager
async def relayed(folder: Path, serve: Serve, *, timeout: float = 20.0) -> AsyncIterator[Relayed]:
    """Before a server that does this for each connection."""
    ended = asyncio.Event()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.clear()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    async with relay_to(folder, server.sockets[0].getsockname()[:2], timeout) as found:
        try:
            yield found
        finally:
            found.after.push_async_callback(asyncio.wait_for, ended.wait(), raw.WAIT)
            found.after.callback(server.close)


@contextlib.asynccontextmanager
async def relay_to(folder: Path, target: Target, timeout: float = 20.0) -> AsyncIterator[Relayed]:
    """On leaving, nothing may have failed in a callback, and every place is free."""
    loop = asyncio.get_running_loop()
    doors = Doors(4)
    porter = Porter(hashlib.sha256(TICKET.encode()).hexdigest(), "pool 0.1", doors)
    relay = Relay({"f": target}, doors, porter, timeout)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "s"))
    listener.listen()
    await relay.listen(listener)
    found = Relayed(str(folder / "s"), doors)
    loop.set_exception_handler(lambda _, context: found.failures.append(context))
    try:
        yield found
        await until(lambda: doors.running == 0)
    finally:
        relay.stop_listening()
        await relay.close()
        await found.after.aclose()
        loop.set_exception_handler(None)
    assert found.failures == []


def request(line: str, *lines: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "host: h", f"modalnomad-ticket: {TICKET}", *lines, "", ""]).encode()


async def refuses_at_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As many servers do: an answer, and the connection closed with the body unread."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(raw.answer(b"too large", "413 Content Too Large", "Connection: close"))


@pytest.mark.parametrize("size", [10, 5_000_000])
async def test_an_early_answer_arrives(tmp_path: Path, size: int) -> None:
    for _ in range(20):
        async with relayed(tmp_path, refuses_at_the_head) as relay:
            client = await relay.connect()
            client.writer.write(request("POST /", f"content-length: {size}") + bytes(size))
            answer = await client.response()
            assert (answer.status, answer.body) == (413, b"too large")
            await client.close()
        (tmp_path / "s").unlink()


async def test_an_early_answer_arrives_although_more_of_the_body_is_passed_on_before_it_is_read(tmp_path: Path) -> None:
    """The relay stands still while the server answers and closes with a part of the body unread."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.setblocking(False)
        client.setblocking(False)
        async with relay_to(tmp_path, listener.getsockname()) as relay:
            await loop.sock_connect(client, relay.path)
            await loop.sock_sendall(client, request("POST /", "content-length: 100") + bytes(50))
            server, _ = await loop.sock_accept(listener)
            with server:
                assert await loop.sock_recv(server, 4) == b"POST"
                client.send(bytes(50))  # nothing else runs from here on to the end of the block
                server.send(raw.answer(b"too large", "413 Content Too Large", "Connection: close"))
            async with asyncio.timeout(raw.WAIT):
                answer = b""
                while data := await loop.sock_recv(client, 65536):
                    answer += data
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b"too large")


async def test_a_client_that_sends_on_after_the_end_fails_nowhere(tmp_path: Path) -> None:
    async with relayed(tmp_path, refuses_at_the_head) as relay:
        client = await relay.connect()
        client.writer.write(request("POST /", "transfer-encoding: chunked"))
        while not client.writer.is_closing():
            client.writer.write(b"5\r\nhello\r\n" * 1000)
            await asyncio.sleep(0)
        await client.close()


async def test_half_close_goes_through(tmp_path: Path) -> None:
    async def counts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw.answer(b"%d" % len(await reader.read())))

    async with relayed(tmp_path, counts) as relay:
        client = await relay.connect()
        client.writer.write(request("POST /") + bytes(1_000_000))
        client.writer.write_eof()
        assert (await client.response()).body == b"1000000"
        await client.close()


async def test_a_place_is_free_after_the_timeout_although_nobody_reads(tmp_path: Path) -> None:
    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with relayed(tmp_path, floods, timeout=-0.5) as relay:  # and the margin
        client = await relay.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(request("GET /"))
        await until(lambda: relay.doors.running == 1)
        await until(lambda: relay.doors.running == 0)
        client.abort()
