"""How long a request waits for a place, all in all."""

from __future__ import annotations

import asyncio
from pathlib import Path

from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.router import until
from tests.support.scaling import scaled
from tests.support.stub_replicas import make_match


async def test_a_request_that_was_refused_waits_on_and_not_anew(tmp_path: Path) -> None:
    match = make_match(max_containers=1)
    async with scaled(tmp_path, settings=RouterSettings(queue_timeout=10)) as platform:
        await platform.serve(match)
        async with raw.client(platform.router.port) as client:
            async with platform.held(match):
                await client.send(raw.get("/", "app-f.localhost"))
                await until(lambda: platform.load(match).waiting == 1)
                await platform.advance(8)
                (stub,) = platform.running(match)
                stub.busy = True
            # Once, or more often by now: it is tried again soon, and stays busy.
            await until(lambda: platform.router.counters.retries.get("busy"))
            await until(lambda: platform.load(match).waiting == 1)
            await platform.advance(3)
            answer = await client.response()
        assert (answer.status, answer["modalnomad-error"]) == (503, "queue_timeout")
        assert platform.load(match).waiting == platform.load(match).running == 0


async def test_a_start_that_takes_longer_than_the_queue_is_not_counted_as_queueing(tmp_path: Path) -> None:
    match = make_match(startup_timeout=60)
    async with scaled(tmp_path, settings=RouterSettings(queue_timeout=10)) as platform:
        await platform.serve(match)
        platform.engine.on_start = lambda stub: None
        request = asyncio.ensure_future(platform.ask(match))
        await until(lambda: platform.running(match))
        await platform.advance(50)
        assert platform.load(match).waiting == 1
        platform.running(match)[0].is_ready.set()
        assert (await request).status == 200
