"""Faults of a cluster, as tests make them: what a client sees of each, and that it is over at the block's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.faults import Faults
from tests.support.fakes.proxy import FaultyProxy
from tests.support.nomad_calls import Calls

STEADY_LOOP = True
SOON = 0.2
"""Seconds in which what does not come has not come."""


@pytest.fixture
async def consul() -> AsyncIterator[FakeConsul]:
    """Something with state, blocking queries and changes to pass on; the proxy knows no difference."""
    async with FakeConsul() as server:
        yield server


@pytest.fixture
async def proxy(consul: FakeConsul) -> AsyncIterator[FaultyProxy]:
    """In front of it."""
    async with FaultyProxy(consul.address) as found:
        yield found


@pytest.fixture
async def calls(proxy: FaultyProxy) -> AsyncIterator[Calls]:
    """Through it."""
    async with Calls(proxy.address) as found:
        yield found


async def put(calls: Calls, value: str, **params: Any) -> int:
    """The status of a write."""
    return (await calls.call("PUT", "/v1/kv/a%2Fb", value.encode(), **params)).status


async def get(calls: Calls, **params: Any) -> str:
    """What is kept."""
    return (await calls.call("GET", "/v1/kv/a%2Fb", raw="true", **params)).text


async def unanswered(call: Any) -> None:
    """It is still under way after a moment; ended here."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, SOON)


async def test_nothing_is_spoilt_without_a_fault(calls: Calls, proxy: FaultyProxy, consul: FakeConsul) -> None:
    assert await put(calls, "x" * 200_000, flags=7) == 200
    reply = await calls.call("GET", "/v1/kv/a%2Fb")
    assert (reply.json[0]["Key"], reply.json[0]["Flags"]) == ("a/b", 7)
    assert int(reply.headers["X-Consul-Index"]) == consul.store.index
    assert (await calls.call("GET", "/v1/kv/none")).status == 404
    assert proxy.requests[0] == "PUT /v1/kv/a%2Fb?flags=7"


async def test_gone_and_back(calls: Calls, proxy: FaultyProxy) -> None:
    await put(calls, "1")
    index = (await calls.call("GET", "/v1/kv/a%2Fb")).headers["X-Consul-Index"]
    async with Tasks("test") as tasks:
        waiting = tasks.spawn(calls.call("GET", "/v1/kv/a%2Fb", index=index, wait="30s"), "waits")
        await asyncio.sleep(SOON)
        faults = Faults(nomad=proxy)
        async with faults.nomad_gone(SOON):
            with pytest.raises(aiohttp.ClientError):
                await waiting
            with pytest.raises(aiohttp.ClientConnectorError):
                await get(calls)
    assert await get(calls) == "1"


async def test_hanging(calls: Calls, proxy: FaultyProxy) -> None:
    with Faults(nomad=proxy).nomad_hangs():
        await unanswered(put(calls, "1"))
    assert await put(calls, "2") == 200


async def test_errors_for_some(calls: Calls, proxy: FaultyProxy) -> None:
    await put(calls, "1")
    with Faults(nomad=proxy).nomad_errors("PUT /v1/kv/") as rule:
        assert await put(calls, "2") == 500
        assert await get(calls) == "1"
        assert rule.met == 1
    assert await put(calls, "3") == 200


async def test_an_error_after_the_effect(calls: Calls, proxy: FaultyProxy) -> None:
    with proxy.rule("PUT", times=1, after=True):
        assert await put(calls, "1") == 500
        assert await get(calls) == "1"
        assert await put(calls, "2") == 200


async def test_an_answer_that_is_lost(calls: Calls, proxy: FaultyProxy) -> None:
    with proxy.rule("PUT", times=1, after=True, lose=True):
        await unanswered(put(calls, "1"))
        assert await get(calls) == "1"


@pytest.fixture
async def lines() -> AsyncIterator[tuple[asyncio.Queue[int], FaultyProxy]]:
    """What an event stream says, line by line, and the proxy before it."""
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"%d\n" % await queue.get())

    app = web.Application()
    app.router.add_get("/v1/event/stream", stream)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with FaultyProxy(f"http://127.0.0.1:{runner.addresses[0][1]}") as proxy:
            yield queue, proxy
    finally:
        await runner.cleanup()


async def test_a_stream_that_falls_silent_and_one_that_is_cut(
    lines: tuple[asyncio.Queue[int], FaultyProxy],
) -> None:
    queue, proxy = lines
    faults = Faults(nomad=proxy)
    async with Calls(proxy.address) as calls, calls.open("/v1/event/stream") as opened:
        queue.put_nowait(1)
        assert await opened.content.readline() == b"1\n"
        with faults.stream_silent():
            queue.put_nowait(2)
            await unanswered(opened.content.readline())
        queue.put_nowait(3)
        assert await opened.content.readline() == b"3\n"
        assert faults.stream_cut() == 1
        with pytest.raises(aiohttp.ClientError):
            await opened.content.readline()
        with faults.stream_never_opens():
            await unanswered(calls.call("GET", "/v1/event/stream"))


async def test_consul_empty_failing_and_older(consul: FakeConsul) -> None:
    faults = Faults(consul=consul)
    async with Calls(consul.address) as calls:
        await put(calls, "1")
        past = consul.snapshot()
        await put(calls, "2")
        with faults.consul_empty():
            assert await calls.get("/v1/kv/a%2Fb") == []
        with faults.consul_errors():
            assert (await calls.call("GET", "/v1/kv/a%2Fb")).status == 500
        index = int((await calls.call("GET", "/v1/kv/a%2Fb")).headers["X-Consul-Index"])
        with faults.consul_older_index(past):
            older = await calls.call("GET", "/v1/kv/a%2Fb")
        assert int(older.headers["X-Consul-Index"]) < index
        assert await get(calls) == "2"
