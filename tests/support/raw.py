"""Raw HTTP clients, and replicas that misbehave by name. Nothing here knows more of HTTP than its test needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from modalnomad.model.replica import Address, TcpAddress, UnixAddress
from tests.support.ports import stop_listening

WAIT = 30.0
"""Seconds after which something that should have come has not."""


@dataclass(slots=True)
class Response:
    """One answer; header names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interims: list[Response] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        values = [value for key, value in self.headers if key == name]
        if len(values) != 1:
            raise KeyError(f"{name}: {values}")
        return values[0]

    def get(self, name: str) -> str | None:
        """None: absent."""
        return next((value for key, value in self.headers if key == name), None)


class Truncated(Exception):
    """The connection ended before the answer did."""


class Client:
    """One connection to the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """All of it."""
        self.writer.write(data)
        async with asyncio.timeout(WAIT):
            await self.writer.drain()

    async def head(self) -> Response:
        """Status and headers of the next answer, 1xx included."""
        async with asyncio.timeout(WAIT):
            try:
                raw = await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                raise Truncated(repr(error.partial)) from error
        lines = raw.decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])]
        return Response(int(lines[0].split(" ")[1]), headers)

    async def response(self, method: str = "GET") -> Response:
        """The next final answer, whole, with the 1xx before it."""
        interims = []
        answer = await self.head()
        while answer.status < 200 and answer.status != 101:
            interims.append(answer)
            answer = await self.head()
        answer.interims = interims
        if method == "HEAD" or answer.status in {101, 204, 304}:
            return answer
        async with asyncio.timeout(WAIT):
            try:
                await self._body(answer)
            except asyncio.IncompleteReadError as error:
                raise Truncated(repr(error.partial[:100])) from error
        return answer

    async def _body(self, answer: Response) -> None:
        if answer.get("transfer-encoding") == "chunked":
            while chunk := await self.chunk():
                answer.body += chunk
            while (line := (await self.reader.readuntil(b"\r\n"))[:-2]) != b"":
                name, _, value = line.decode("latin-1").partition(":")
                answer.trailers.append((name.lower(), value.strip()))
        elif (length := answer.get("content-length")) is not None:
            answer.body = await self.reader.readexactly(int(length))
        else:
            answer.body = await self.reader.read()

    async def chunk(self) -> bytes:
        """The next chunk's payload; empty: the last one (its trailers are still to be read)."""
        size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
        if size == 0:
            return b""
        data = await self.reader.readexactly(size + 2)
        assert data[-2:] == b"\r\n"
        return data[:-2]

    async def request(self, data: bytes) -> Response:
        """Send one request, read its answer."""
        await self.send(data)
        return await self.response(data.split(b" ", 1)[0].decode("latin-1"))

    async def at_end(self) -> bytes:
        """What comes until the router closes; a reset counts as closing."""
        async with asyncio.timeout(WAIT):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def abort(self) -> None:
        """Vanish."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Leave."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def client(port: int, *, limit: int = 2**16) -> AsyncIterator[Client]:
    """Connected to the router on loopback."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    connected = Client(reader, writer)
    try:
        yield connected
    finally:
        await connected.close()


def get(path: str = "/", host: str = "app.localhost", *lines: str) -> bytes:
    """A GET."""
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode("latin-1")


def post(body: bytes, *lines: str, path: str = "/", host: str = "app.localhost") -> bytes:
    """A POST with a Content-Length."""
    head = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


# --- replicas -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Received:
    """A request as the replica got it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def get(self, name: str) -> str | None:
        """The only value; None: absent. Two are a failure of the router."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


Script = Callable[["Replica", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Replica:
    """A server that follows a script for each connection, and remembers what it got."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Received] = []
        self.connections = 0
        self.ended = 0
        """Connections whose script is over."""
        self.errors: list[BaseException] = []
        self.release = asyncio.Event()
        """For scripts that wait until the test says so."""
        self.arrived = asyncio.Event()
        """A request head came."""
        self.left = asyncio.Event()
        """The router closed, while the script was looking."""
        self.address: Address = TcpAddress("127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            await self.script(self, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        except AssertionError as error:
            self.errors.append(error)
        finally:
            self.ended += 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def read_head(self, reader: asyncio.StreamReader) -> Received:
        """The next head; remembered."""
        raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in raw[1:-2])]
        received = Received(raw[0], headers)
        self.requests.append(received)
        self.arrived.set()
        return received

    async def read(self, reader: asyncio.StreamReader) -> Received:
        """The next request, whole."""
        received = await self.read_head(reader)
        if received.get("transfer-encoding") == "chunked":
            answer = Response(0, [("transfer-encoding", "chunked")])
            await Client(reader, None)._body(answer)  # type: ignore[arg-type]  # only reads
            received.body = answer.body
        elif (length := received.get("content-length")) is not None:
            received.body = await reader.readexactly(int(length))
        return received


@contextlib.asynccontextmanager
async def replica(script: Script, *, unix: Path | None = None) -> AsyncIterator[Replica]:
    """Listening on loopback, or on a Unix socket."""
    backend = Replica(script)
    if unix is not None:
        server = await asyncio.start_unix_server(backend.serve, str(unix))
        backend.address = UnixAddress(str(unix))
    else:
        server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
        backend.address = TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield backend
    finally:
        backend.release.set()
        await stop_listening(server)
        async with asyncio.timeout(WAIT):
            while backend.ended < backend.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert not backend.errors, backend.errors


def answer(body: bytes = b"ok", status: str = "200 OK", *lines: str) -> bytes:
    """A response with a Content-Length."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


async def polite(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads each request whole and answers `ok`, or echoes a body; keeps the connection."""
    while True:
        received = await backend.read(reader)
        body = received.body or b"ok"
        writer.write(answer(b"" if received.line.startswith("HEAD") else body))
        await writer.drain()
        if "close" in (received.get("connection") or ""):
            return


async def waits(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers when the test says so."""
    while True:
        await backend.read(reader)
        await backend.release.wait()
        writer.write(answer())
        await writer.drain()


async def closes_before_answer(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads the request and hangs up."""
    await backend.read(reader)


async def dies_mid_answer(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Half a counted body, then nothing."""
    await backend.read(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()


async def dies_mid_chunks(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A chunk, and no last one."""
    await backend.read(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    await writer.drain()


async def dies_mid_head(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Half a head."""
    await backend.read(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-")
    await writer.drain()


def says(data: bytes, *, close: bool = True) -> Script:
    """Reads each request and sends these bytes, whatever they are."""

    async def script(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await backend.read(reader)
            writer.write(data)
            await writer.drain()
            if close:
                return

    return script


async def never_answers(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads the request and then looks whether the router leaves."""
    await backend.read(reader)
    await reader.read(1)
    backend.left.set()


async def busy(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuses as a full runner does: nothing of the body is read."""
    await backend.read_head(reader)
    writer.write(answer(b"", "503 Service Unavailable", "Modalnomad-Busy: 1", "Connection: close"))
    await writer.drain()


async def once(backend: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Promises to keep the connection, and closes it when the second request comes."""
    await backend.read(reader)
    writer.write(answer())
    await writer.drain()
    await backend.read_head(reader)
