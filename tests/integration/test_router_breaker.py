"""Programs that do not start: told at once, tried one at a time, and mended by what comes next."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modalnomad.model.replica import Failure, PoolKey
from modalnomad.router.activator import StartFailed
from modalnomad.settings import ScalingSettings
from tests.support.scaling import LOOK, Scaled, scaled
from tests.support.stub_replicas import make_match

SCALING = ScalingSettings(interval=LOOK, breaker_failures=2, breaker_backoff=30, breaker_backoff_max=600)
BROKEN = Failure("start_failed", "exit code 70", "Traceback: boom", 70)
MATCH = make_match()


async def break_it(platform: Scaled) -> None:
    """Two failed starts, each told to its request; then nothing is started."""
    platform.engine.failure = BROKEN
    for started in (1, 2, 2, 2):
        answer = await platform.ask(MATCH)
        assert (answer.status, answer["modalnomad-error"]) == (503, "start_failed")
        assert len(platform.engine.started) == started
    assert answer["retry-after"] == "30"


async def test_one_trial_at_a_time_and_a_longer_pause_after_each(tmp_path: Path) -> None:
    async with scaled(tmp_path, scaling=SCALING) as platform:
        await platform.serve(MATCH)
        await break_it(platform)
        await platform.advance(31)
        answers = await asyncio.gather(*(platform.ask(MATCH) for _ in range(10)))
        assert {answer.status for answer in answers} == {503}
        assert len(platform.engine.started) == 3
        assert (await platform.ask(MATCH))["retry-after"] == "60"
        await platform.advance(31)
        await platform.ask(MATCH)
        assert len(platform.engine.started) == 3


async def test_a_trial_that_succeeds_ends_it(tmp_path: Path) -> None:
    async with scaled(tmp_path, scaling=SCALING) as platform:
        await platform.serve(MATCH)
        await break_it(platform)
        platform.engine.failure = None
        assert (await platform.ask(MATCH)).status == 503, "not before its time"
        await platform.advance(31)
        answers = await asyncio.gather(*(platform.ask(MATCH) for _ in range(10)))
        assert {answer.status for answer in answers} == {200}


async def test_a_new_version_starts_at_once(tmp_path: Path) -> None:
    async with scaled(tmp_path, scaling=SCALING) as platform:
        await platform.serve(MATCH)
        await break_it(platform)
        platform.engine.failure = None
        mended = make_match(version=2)
        await platform.serve(mended)
        assert (await platform.ask(mended)).status == 200


async def test_a_check_of_the_same_version_ends_it_when_it_starts(tmp_path: Path) -> None:
    async with scaled(tmp_path, scaling=SCALING) as platform:
        await platform.serve(MATCH)
        await break_it(platform)
        key = PoolKey(MATCH.revision.id)
        with pytest.raises(StartFailed):
            await platform.router.activator.warm(MATCH.revision, key, 1)
        platform.engine.failure = None
        await platform.router.activator.warm(MATCH.revision, key, 1)
        assert (await platform.ask(MATCH)).status == 200


async def test_what_nothing_can_run_is_told_and_not_tried_for_every_request(tmp_path: Path) -> None:
    async with scaled(tmp_path, scaling=SCALING) as platform:
        await platform.serve(MATCH)
        platform.engine.failure = Failure("unplaceable", "no GPU here")
        answers = [await platform.ask(MATCH) for _ in range(3)]
        assert [(answer.status, answer["modalnomad-error"]) for answer in answers] == [(503, "unplaceable")] * 3
        assert len(platform.engine.started) == 1
        platform.engine.failure = None
        await platform.advance(31)
        assert (await platform.ask(MATCH)).status == 200
