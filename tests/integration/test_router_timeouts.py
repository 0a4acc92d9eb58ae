"""A function's timeout: what counts against it, and what becomes of an answer that has begun."""

from __future__ import annotations

import asyncio

from tests.support import raw
from tests.support.router import route, served

STEADY_LOOP = True


async def test_waiting_does_not_count_against_the_timeout() -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, routes=[route(timeout=0.2)]) as router,
        raw.client(router.port) as client,
    ):
        router.activator.ready.clear()
        await client.send(raw.get())
        await asyncio.sleep(0.4)
        router.activator.ready.set()
        assert (await client.response()).status == 200


async def test_running_answer_is_cut_at_the_timeout() -> None:
    async def slow(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await reader.read()
        backend.left.set()

    async with (
        raw.replica(slow) as backend,
        served(backend.address, routes=[route(timeout=0.3)]) as router,
        raw.client(router.port) as client,
    ):
        await client.send(raw.get())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"half"
        assert await client.at_end() == b""
        async with asyncio.timeout(raw.WAIT):
            await backend.left.wait()
        await router.quiet()
