"""Waking and waiting: the activator with real sockets between it and small replicas."""

from __future__ import annotations

import asyncio

import pytest

from modalnomad.model.replica import Failure
from modalnomad.router.activator import StartFailed
from modalnomad.router.replies import Reply
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support.activator import Opener, pool_of, use
from tests.support.stub_replicas import make_match

STEADY_LOOP = True


async def test_sixty_four_requests_at_zero_are_one_wake_of_the_right_size(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(max_inputs=8)
    platform.route(match)
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(use(platform, match, done)) for _ in range(64)]
        await platform.until(lambda: platform.activator.load(match.revision.id).running == 64)
        load = platform.activator.load(match.revision.id)
        assert (load.wakes, load.starts, load.waiting) == (1, 8, 0)
        done.set()
    assert sorted({task.result().key.number for task in requests}) == list(range(8))
    assert {task.result().key.epoch for task in requests} == {1}
    assert platform.activator.load(match.revision.id).running == 0


async def test_a_failed_start_is_told_to_everybody_waiting(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(max_inputs=5)
    platform.route(match)
    platform.engine.failure = Failure("start_failed", "exit code 70", "Traceback: boom", 70)
    outcomes = await asyncio.gather(*(use(platform, match) for _ in range(5)), return_exceptions=True)
    answers = [error.answer for error in outcomes if isinstance(error, Reply)]
    assert [(answer.status, answer.code) for answer in answers] == [(503, "start_failed")] * 5
    assert all("boom" in answer.private and "boom" not in answer.detail for answer in answers)
    assert len(platform.engine.started) == 1


async def test_the_breaker_opens_and_a_success_closes_it(open_platform: Opener) -> None:
    scaling = ScalingSettings(interval=0.02, breaker_failures=2, breaker_backoff=0.3)
    platform, match = await open_platform(scaling=scaling), make_match()
    platform.route(match)
    platform.engine.failure = Failure("start_failed", "exit code 70")
    for _ in range(4):
        with pytest.raises(Reply) as caught:
            await use(platform, match)
    assert caught.value.answer.code == "start_failed"
    assert caught.value.answer.retry_after is not None
    assert len(platform.engine.started) == 2
    platform.engine.failure = None
    while True:
        try:
            lease = await use(platform, match)
            break
        except Reply:
            await asyncio.sleep(0.02)
    assert lease.key.epoch == 3


async def test_a_start_that_hangs_is_ended_and_answered_504(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(startup_timeout=0.2)
    platform.route(match)
    platform.engine.on_start = lambda stub: None
    with pytest.raises(Reply) as caught:
        await use(platform, match)
    assert (caught.value.answer.status, caught.value.answer.code) == (504, "startup_timeout")
    await platform.until(lambda: platform.engine.killed == platform.engine.started)


async def test_an_engine_that_refuses_to_start_is_a_failed_start(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    platform.engine.unprepared = True
    with pytest.raises(Reply) as caught:
        await use(platform, match)
    assert caught.value.answer.code == "start_failed"
    assert "not prepared" in caught.value.answer.private


async def test_a_lease_granted_to_a_client_that_just_left_is_given_back(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(max_containers=1)
    platform.route(match)
    first = asyncio.Event()
    holder = asyncio.create_task(use(platform, match, first))
    await platform.until(lambda: platform.activator.load(match.revision.id).running == 1)
    waiter = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.activator.load(match.revision.id).waiting == 1)
    first.set()
    await holder  # the grant is made in this very step of the loop
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert platform.activator.load(match.revision.id).running == 0
    await use(platform, match)


async def test_a_stranger_on_the_socket_does_not_pass_for_the_replica(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(startup_timeout=0.1)
    platform.route(match)

    def pretend(stub: object) -> None:
        stub.name = "somebody else"  # type: ignore[attr-defined]
        stub.is_ready.set()  # type: ignore[attr-defined]

    platform.engine.on_start = pretend
    with pytest.raises(Reply) as caught:
        await use(platform, match)
    assert caught.value.answer.code == "startup_timeout"


async def test_those_waiting_follow_their_route_to_the_new_revision(open_platform: Opener) -> None:
    platform, old, new = await open_platform(), make_match(version=1), make_match(version=2)
    platform.route(old)
    platform.engine.on_start = lambda stub: None
    waiter = asyncio.create_task(use(platform, old))
    await platform.until(lambda: platform.engine.stubs)
    platform.engine.on_start = lambda stub: stub.is_ready.set()
    platform.route(new)
    lease = await waiter
    assert lease.key.pool.revision == new.revision.id == lease.match.revision.id
    await platform.until(lambda: platform.engine.killed)
    late = await use(platform, old)  # matched before the table was swapped
    assert late.key == lease.key


async def test_those_waiting_for_a_route_that_is_gone_get_404(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    platform.engine.on_start = lambda stub: None
    waiter = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.engine.stubs)
    platform.route()
    with pytest.raises(Reply) as caught:
        await waiter
    assert caught.value.answer.status == 404


async def test_warm_says_why_a_start_failed(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.engine.failure = Failure("start_failed", "exit code 70", "Traceback: boom", 70)
    for _ in range(4):  # somebody asks on purpose: no breaker is in the way
        with pytest.raises(StartFailed) as caught:
            await platform.activator.warm(match.revision, pool_of(match), 3)
        assert caught.value.failure.detail == "Traceback: boom"


async def test_who_warms_a_revision_that_is_retired_meanwhile_is_told(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.engine.on_start = lambda stub: None
    warming = asyncio.create_task(platform.activator.warm(match.revision, pool_of(match), 1))
    await platform.until(lambda: platform.engine.stubs)
    await platform.activator.retire(match.revision.id)
    with pytest.raises(StartFailed, match="not served"):
        async with asyncio.timeout(10):
            await warming


async def test_the_queue_has_an_end_and_a_limit(open_platform: Opener) -> None:
    settings = RouterSettings(queue_limit=1, queue_timeout=0.2)
    platform, match = await open_platform(settings=settings), make_match(max_containers=1)
    platform.route(match)
    done = asyncio.Event()
    holder = asyncio.create_task(use(platform, match, done))
    await platform.until(lambda: platform.activator.load(match.revision.id).running == 1)
    waiter = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.activator.load(match.revision.id).waiting == 1)
    with pytest.raises(Reply) as newcomer:
        await use(platform, match)
    assert (newcomer.value.answer.status, newcomer.value.answer.code) == (429, "queue_full")
    with pytest.raises(Reply) as expired:
        await waiter
    assert (expired.value.answer.status, expired.value.answer.code) == (503, "queue_timeout")
    assert expired.value.answer.retry_after is not None
    done.set()
    await holder


async def test_no_room_and_nothing_idle_is_503_at_once(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    platform.engine.failure = Failure("no_capacity", "one replica at a time")
    with pytest.raises(Reply) as caught:
        await use(platform, match)
    assert (caught.value.answer.status, caught.value.answer.code) == (503, "no_capacity")
    assert caught.value.answer.retry_after is not None


async def test_closing_answers_those_who_wait(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    platform.engine.on_start = lambda stub: None
    waiter = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.engine.stubs)
    await platform.activator.close()
    with pytest.raises(Reply) as caught:
        await waiter
    assert (caught.value.answer.code, caught.value.answer.close) == ("draining", True)
