"""Waking, waiting, draining: the activator with real sockets between it and small replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from modalnomad.kit.tasks import Tasks
from modalnomad.model.manifest import Parameter
from modalnomad.model.replica import Address, Failure, PoolKey, ReplicaState
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.router.activator import Activator, Lease, StartFailed
from modalnomad.router.auth import Auth
from modalnomad.router.feed import Feed
from modalnomad.router.replies import Reply
from modalnomad.router.scaler import Scaler
from modalnomad.router.table import Match, RouteTable
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support.stub_replicas import PLATFORM_KEY, StubEngine, ask, make_match

pytestmark = pytest.mark.timeout(20)


class Platform:
    """Activator, feed and scaler around a stub engine."""

    def __init__(self, folder: Path, settings: RouterSettings, scaling: ScalingSettings) -> None:
        self.engine = StubEngine(folder)
        self.table = RouteTable({})
        self.forgotten: list[Address] = []
        self.activator = Activator(
            engine=self.engine,
            ask=ask,
            forget=self.forgotten.append,
            resolve=self._resolve,
            settings=settings,
            scaling=scaling,
            platform_key=PLATFORM_KEY,
        )
        self.feed = Feed(cast(Discovery, None), self.engine, self._take_table, Auth(), self.activator)
        self.scaler = Scaler(self.activator, scaling)

    def _take_table(self, table: RouteTable) -> None:
        self.table = table

    def _resolve(self, host: str) -> Match:
        return self.table.match(host)

    def route(self, *matches: Match) -> None:
        """From now on these routes are served."""
        revisions = {match.revision.id: match.revision for match in matches}
        self.feed.take_routes(RouteSnapshot(tuple(match.route for match in matches), revisions))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a value; the test's own time limit bounds it."""
        while not condition():  # noqa: ASYNC110 - counts have no event to wait for
            await asyncio.sleep(0.005)


@asynccontextmanager
async def platform_at(
    folder: Path, *, settings: RouterSettings | None = None, scaling: ScalingSettings | None = None
) -> AsyncIterator[Platform]:
    platform = Platform(folder, settings or RouterSettings(), scaling or ScalingSettings(interval=0.02))
    async with Tasks("test") as tasks:
        tasks.guard(platform.feed.run_replicas(), "replicas")
        tasks.guard(platform.scaler.run(), "scaler")
        try:
            yield platform
        finally:
            await platform.activator.close()
            await platform.engine.close()


Opener = Callable[..., Awaitable[Platform]]


@pytest.fixture
async def open_platform(tmp_path: Path) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as stack:

        async def opener(**arguments: object) -> Platform:
            return await stack.enter_async_context(platform_at(tmp_path, **arguments))  # type: ignore[arg-type]

        yield opener


def pool_of(match: Match) -> PoolKey:
    return PoolKey(match.revision.id)


async def use(platform: Platform, match: Match, until: asyncio.Event | None = None) -> Lease:
    async with platform.activator.lease(match, pool_of(match)) as lease:
        if until is not None:
            await until.wait()
        return lease


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


async def test_a_client_that_leaves_frees_its_ticket_and_the_wake_goes_on(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.1)
    platform.route(match)
    platform.engine.on_start = lambda stub: None
    request = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.engine.stubs)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert platform.activator.load(match.revision.id).waiting == 0
    (stub,) = platform.engine.stubs.values()
    stub.is_ready.set()
    await asyncio.wait_for(stub.drained.wait(), 5)
    assert not platform.engine.killed


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


async def test_an_idle_replica_is_drained_and_the_next_request_wakes_the_next_epoch(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.05)
    platform.route(match)
    first = await use(platform, match)
    stub = platform.engine.stubs[first.key]
    await stub.drained.wait()
    await platform.feed.replicas.until(lambda found: found[0].state is ReplicaState.DRAINING)
    second = await use(platform, match)  # the drain was sent: the next replica starts
    assert (second.key.number, second.key.epoch) == (1, 1)
    await platform.engine.end(first.key)
    await platform.until(lambda: platform.activator.load(match.revision.id).leaving == 0)
    assert first.address in platform.forgotten


async def test_a_refused_drain_leaves_the_replica_in_use(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.5)
    platform.route(match)
    lease = await use(platform, match)
    stub = platform.engine.stubs[lease.key]
    stub.running = 1  # another router's request
    await platform.until(lambda: [path for method, path in stub.asked if method == "POST"])
    # Between its question and the refusal the router counts it as leaving, and would start another.
    await platform.until(lambda: platform.activator.load(match.revision.id).leaving == 0)
    assert (await use(platform, match)).key == lease.key
    assert len(platform.engine.started) == 1


async def test_requests_race_drains_and_none_is_lost(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.01, max_inputs=3)
    platform.route(match)
    ended: list[asyncio.Task[None]] = []

    async def end_when_drained(stub: object) -> None:
        await stub.drained.wait()  # type: ignore[attr-defined]
        await platform.engine.end(stub.key)  # type: ignore[attr-defined]

    async with Tasks("drains") as tasks:

        def start(stub: object) -> None:
            stub.is_ready.set()  # type: ignore[attr-defined]
            ended.append(tasks.spawn(end_when_drained(stub), "drain"))

        platform.engine.on_start = start
        for pause in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03) * 5:
            leases = await asyncio.gather(*(use(platform, match) for _ in range(4)))
            assert all(not platform.engine.stubs[lease.key].drained.is_set() or lease for lease in leases)
            await asyncio.sleep(pause)
        await platform.until(lambda: platform.activator.load(match.revision.id).ready == 0)
    load = platform.activator.load(match.revision.id)
    assert (load.waiting, load.running) == (0, 0)
    assert len(platform.engine.started) > 2, "nothing was ever drained: the race was not run"
    assert len(set(platform.engine.started)) == len(platform.engine.started)


async def test_a_refused_connection_is_a_strike_until_the_replica_answers(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        stub = platform.engine.stubs[lease.key]
        await stub.close()
        lease.gone()
    waiter = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.activator.load(match.revision.id).waiting == 1)
    await stub.listen()
    assert (await waiter).key == lease.key
    assert len(platform.engine.started) == 1


async def test_a_dead_replica_is_replaced_for_those_waiting(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        await platform.engine.end(lease.key, Failure("replica_gone", "signal 9"))
        lease.gone()
    again = await use(platform, match)
    assert (again.key.number, again.key.epoch) == (0, 2)


async def test_a_busy_replica_is_offered_again_after_a_moment(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(max_containers=1)
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        lease.refused()
    assert (await use(platform, match)).key == lease.key


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


async def test_warm_returns_when_ready_and_the_old_revision_finishes_what_it_holds(open_platform: Opener) -> None:
    platform, old, new = await open_platform(), make_match(version=1), make_match(version=2)
    platform.route(old)
    done = asyncio.Event()
    request = asyncio.create_task(use(platform, old, done))
    await platform.until(lambda: platform.activator.load(old.revision.id).running == 1)
    await platform.activator.warm(new.revision, pool_of(new), 2)
    assert platform.activator.load(new.revision.id).ready == 2
    platform.route(new)
    (stub,) = (stub for key, stub in platform.engine.stubs.items() if key.pool == pool_of(old))
    assert (await use(platform, new)).key.pool == pool_of(new)
    assert not stub.drained.is_set()
    done.set()
    assert (await request).key == stub.key
    await asyncio.wait_for(stub.drained.wait(), 5)


async def test_warm_says_why_a_start_failed(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.engine.failure = Failure("start_failed", "exit code 70", "Traceback: boom", 70)
    for _ in range(4):  # somebody asks on purpose: no breaker is in the way
        with pytest.raises(StartFailed) as caught:
            await platform.activator.warm(match.revision, pool_of(match), 3)
        assert caught.value.failure.detail == "Traceback: boom"


async def test_min_containers_start_with_their_route_and_are_greeted(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(min_containers=2, scaledown_window=0.01)
    platform.route(match)
    await platform.until(lambda: platform.activator.load(match.revision.id).ready == 2)
    stub = next(iter(platform.engine.stubs.values()))
    await platform.until(lambda: len(stub.asked) >= 2)
    assert {path for _, path in stub.asked} == {"/.modalnomad/ready"}


async def test_a_single_use_replica_takes_one_request(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(single_use=True, max_inputs=5)
    platform.route(match)
    leases = [await use(platform, match) for _ in range(3)]
    assert len({lease.key for lease in leases}) == 3
    for lease in leases:
        await asyncio.wait_for(platform.engine.stubs[lease.key].drained.wait(), 5)


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


async def test_idle_parameter_pools_make_room_for_new_ones(open_platform: Opener) -> None:
    platform = await open_platform(settings=RouterSettings(max_pools=2))
    match = make_match(parameters=(Parameter(name="root", type="str"),))
    platform.route(match)
    keys = [PoolKey(match.revision.id, f'{{"root":"{letter}"}}') for letter in "abc"]
    async with platform.activator.lease(match, keys[0]) as first:
        async with platform.activator.lease(match, keys[1]) as second:
            with pytest.raises(Reply) as caught:
                async with platform.activator.lease(match, keys[2]):
                    raise AssertionError("three pools in use")
        assert (caught.value.answer.status, caught.value.answer.code) == (429, "too_many_pools")
        async with platform.activator.lease(match, keys[2]) as third:
            assert third.key.pool == keys[2]
        await asyncio.wait_for(platform.engine.stubs[second.key].drained.wait(), 5)
    assert not platform.engine.stubs[first.key].drained.is_set()


async def test_when_there_is_no_room_an_idle_pool_gives_way(open_platform: Opener) -> None:
    platform = await open_platform()
    idle, wanted = make_match(tag="f"), make_match(tag="g", host="g.localhost")
    platform.route(idle, wanted)
    lease = await use(platform, idle)
    platform.engine.failure = Failure("no_capacity", "one replica at a time")
    request = asyncio.create_task(use(platform, wanted))
    await asyncio.wait_for(platform.engine.stubs[lease.key].drained.wait(), 5)
    platform.engine.failure = None
    await platform.engine.end(lease.key)
    assert (await request).key.pool == pool_of(wanted)


async def test_no_room_and_nothing_idle_is_503_at_once(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    platform.engine.failure = Failure("no_capacity", "one replica at a time")
    with pytest.raises(Reply) as caught:
        await use(platform, match)
    assert (caught.value.answer.status, caught.value.answer.code) == (503, "no_capacity")
    assert caught.value.answer.retry_after is not None


async def test_a_lease_on_a_dead_replica_strikes_nothing(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        await platform.engine.end(lease.key)
        await platform.until(lambda: platform.activator.load(match.revision.id).ready == 0)
        lease.gone()
        lease.refused()
    assert platform.activator.load(match.revision.id).running == 0


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


async def test_leases_that_end_after_closing_ask_for_nothing_more(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        await platform.activator.retire(match.revision.id)
        await platform.activator.close()
        lease.gone()
    assert platform.activator.load(match.revision.id).running == 0
    assert not platform.engine.stubs[lease.key].drained.is_set()
