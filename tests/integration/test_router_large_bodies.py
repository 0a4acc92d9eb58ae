"""Bodies far larger than memory may grow: a slow peer holds the other side back, whichever way they go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

import pytest

from modalnomad.model.replica import TcpAddress
from tests.support import raw

MIB = 1024 * 1024
ALLOWED = 32 * MIB
PIECE = 256 * 1024

ROUTER = """
import asyncio, sys
from modalnomad.model.replica import TcpAddress
from tests.support.router import served

async def main():
    loop = asyncio.get_running_loop()
    async with served(TcpAddress("127.0.0.1", int(sys.argv[1]))) as router:
        print(router.port, flush=True)
        await loop.run_in_executor(None, sys.stdin.read)

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def router(backend: raw.Replica, loop: str) -> AsyncIterator[tuple[int, int]]:
    """The data plane in a process of its own: port and process id."""
    assert isinstance(backend.address, TcpAddress)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ROUTER, str(backend.address.port), loop,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            port = int(await process.stdout.readline())
        yield port, process.pid
    finally:
        process.stdin.close()
        async with asyncio.timeout(30):
            await process.wait()
    assert process.returncode == 0


def memory(pid: int, name: str) -> int:
    """`VmRSS` or `VmHWM` (its highest), bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


async def slowly(reader: asyncio.StreamReader, size: int) -> int:
    """Read everything, with a rest now and then; how much it was."""
    taken = 0
    while taken < size:
        data = await reader.read(PIECE)
        if not data:
            break
        taken += len(data)
        if taken % (8 * MIB) < len(data):
            await asyncio.sleep(0.02)
    return taken


def sizes() -> list[object]:
    """1 GiB is the promise; the small one shows a router that hoards as well."""
    return [pytest.param(192 * MIB, id="192MiB"), pytest.param(1024 * MIB, id="1GiB", marks=pytest.mark.slow)]


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the router's memory from /proc")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("framing", ["counted", "chunked"])
@pytest.mark.parametrize("size", sizes())
async def test_slow_client_of_a_large_answer(size: int, framing: str, loop: str) -> None:
    piece = os.urandom(PIECE)

    async def pours(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read(reader)
        chunked = framing == "chunked"
        writer.write(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // PIECE):
            writer.write(b"%x\r\n%b\r\n" % (PIECE, piece) if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        writer.close()

    async with raw.replica(pours) as backend, router(backend, loop) as (port, pid), raw.client(port) as client:
        before = memory(pid, "VmRSS")
        await client.send(raw.get("/", "app.localhost", "Connection: close"))
        assert (await client.head()).status == 200
        assert await slowly(client.reader, size) >= size
        assert memory(pid, "VmHWM") - before < ALLOWED


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("framing", ["counted", "chunked"])
@pytest.mark.parametrize("size", sizes())
async def test_slow_replica_of_a_large_request(size: int, framing: str, loop: str) -> None:
    piece = os.urandom(PIECE)
    got = 0

    async def sips(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        received = await backend.read_head(reader)
        length = received.get("content-length")
        if length is not None:
            got = await slowly(reader, int(length))
        else:
            peer = raw.Client(reader, writer)
            while chunk := await peer.chunk():
                got += len(chunk)
                if got % (8 * MIB) < len(chunk):
                    await asyncio.sleep(0.02)
            await reader.readexactly(2)
        writer.write(raw.answer())
        await writer.drain()

    async with raw.replica(sips) as backend, router(backend, loop) as (port, pid), raw.client(port) as client:
        before = memory(pid, "VmRSS")
        chunked = framing == "chunked"
        line = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % size
        await client.send(b"POST / HTTP/1.1\r\nHost: app.localhost\r\n" + line)
        for _ in range(size // PIECE):
            await client.send(b"%x\r\n%b\r\n" % (PIECE, piece) if chunked else piece)
        if chunked:
            await client.send(b"0\r\n\r\n")
        assert (await client.response()).status == 200
        assert got == size
        assert memory(pid, "VmHWM") - before < ALLOWED
