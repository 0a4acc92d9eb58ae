"""More than one router, and replicas that their engine wants replaced: on real sockets, nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

from modalnomad.kit.tasks import Tasks
from modalnomad.model.manifest import Parameter
from modalnomad.model.replica import Failure, PoolKey, ReplicaKey
from modalnomad.router.places import PlaceState
from modalnomad.router.table import Match
from tests.support.pace import turn
from tests.support.routers import Routers, routers
from tests.support.stub_replicas import StubReplica, make_match

STEADY_LOOP = True

FIRST, SECOND = 0, 1


def key(match: Match, number: int = 0, epoch: int = 1) -> ReplicaKey:
    return ReplicaKey(PoolKey(match.revision.id), number, epoch)


async def flood(found: Routers, match: Match, statuses: list[int], until: asyncio.Event) -> None:
    """Requests through both routers, one after the other each, until told to end."""

    async def one(index: int) -> None:
        while not until.is_set():
            statuses.append((await found.ask(index, match)).status)
            await asyncio.sleep(turn(2))

    await asyncio.gather(*(one(index) for index in (FIRST, SECOND) for _ in range(2)))


async def test_many_requests_at_once_through_three_routers_are_one_start_per_replica(tmp_path: Path) -> None:
    match = make_match(max_inputs=4, max_containers=4)
    async with routers(tmp_path, 3) as found:
        await found.serve(match)
        found.engine.open.clear()  # none is answered before all have come
        asked = [asyncio.ensure_future(found.ask(number % 3, match)) for number in range(48)]
        await found.until(lambda: len(found.engine.started) == 4)
        found.engine.open.set()
        answers = await asyncio.gather(*asked)
        assert {answer.status for answer in answers} == {200}
        assert sorted(found.engine.stubs, key=lambda found: found.number) == [key(match, n) for n in range(4)]
        assert len(found.engine.started) == 4


async def test_what_another_router_started_is_offered_as_soon_as_it_answers(tmp_path: Path) -> None:
    match = make_match()
    async with routers(tmp_path) as found:
        await found.serve(match)
        await found.ask(FIRST, match)
        await found.until(lambda: (place := found.place(SECOND, key(match))) and place.state is PlaceState.READY)
        assert (await found.ask(SECOND, match)).body == b"0.1"
        assert len(found.engine.started) == 1


async def test_only_the_one_that_may_sends_idle_replicas_away_also_those_it_was_never_asked_for(tmp_path: Path) -> None:
    match = make_match(scaledown_window=0.1)
    async with routers(tmp_path) as found:
        found.holder = None
        await found.serve(match)
        await found.ask(SECOND, match)
        stub = found.engine.stubs[key(match)]
        for index in (FIRST, SECOND):
            await found.until(lambda index=index: found.idle_for(index, key(match)) > 0.2)  # type: ignore[misc]
            found.routers[index].scaler.look()
        assert not [path for method, path in stub.asked if method == "POST"], "nobody may, nobody asks"
        found.holder = FIRST
        await found.until(lambda: not found.running(match.revision.id))


async def test_a_retired_revision_is_drained_by_the_one_that_may(tmp_path: Path) -> None:
    old, new = make_match(version=1), make_match(version=2)
    async with routers(tmp_path) as found:
        found.holder = None
        await found.serve(old)
        await found.ask(SECOND, old)
        await found.serve(new)
        assert (await found.ask(FIRST, new)).status == 200
        stub = found.engine.stubs[key(old)]
        assert not [path for method, path in stub.asked if method == "POST"]
        late = await found.engine.begin(key(old, 1))  # started by a router that had not heard of it yet
        found.holder = FIRST
        await found.until(lambda: stub.closed and late.closed)
        assert found.running(new.revision.id)


async def test_what_a_deploy_starts_of_a_retired_revision_is_left_alone_until_it_is_served(tmp_path: Path) -> None:
    old, new = make_match(version=1, scaledown_window=60), make_match(version=2)
    async with routers(tmp_path) as found:
        await found.serve(old)
        await found.ask(FIRST, old)
        await found.serve(new)
        await found.until(lambda: not found.running(old.revision.id))

        stub = await found.engine.begin(key(old, 0, 2), staged=True)
        await found.ask(FIRST, new)
        for router in found.routers:
            router.scaler.look()
        assert found.place(FIRST, key(old, 0, 2)) is None
        await found.serve(old)
        assert (await found.ask(FIRST, old)).body == b"0.2"
        assert not [path for method, path in stub.asked if method == "POST"]


async def test_one_to_be_replaced_in_use_by_all_of_them_goes_and_no_request_is_lost(tmp_path: Path) -> None:
    match = make_match(max_containers=2, max_inputs=2)
    async with routers(tmp_path) as found, Tasks("flood") as tasks:
        await found.serve(match)
        statuses: list[int] = []
        done = asyncio.Event()
        flooding = tasks.spawn(flood(found, match, statuses, done), "flood")
        await found.until(lambda: len(statuses) > 20)
        before = [place.key for place in found.places(FIRST)]
        assert before
        for old in before:
            found.engine.wants_replaced(old, "node n1 is drained")
        await found.until(lambda: not set(before) & set(found.running(match.revision.id)))
        more = len(statuses) + 20
        await found.until(lambda: len(statuses) > more)
        done.set()
        await flooding
        assert set(statuses) == {200}
        assert set(found.engine.reasons.values()) >= {"replaced: node n1 is drained"}
        assert not found.engine.killed
        (life,) = found.routers[FIRST].activator.observer.lives()
        assert (life.starts["replaced"], life.drains["replaced"], life.deaths) == (len(before), len(before), 0)
        (other,) = found.routers[SECOND].activator.observer.lives()
        assert other.deaths == 0, "what another router sent away did not crash"


async def test_a_replica_another_router_sent_away_is_no_crash_and_its_request_goes_elsewhere(tmp_path: Path) -> None:
    match = make_match(scaledown_window=0.05, max_inputs=2)
    async with routers(tmp_path) as found, Tasks("flood") as tasks:
        await found.serve(match)
        statuses: list[int] = []

        async def now_and_then() -> None:
            for number in range(40):
                statuses.append((await found.ask(number % 2, match)).status)
                await asyncio.sleep(0.02 * (number % 6))

        await tasks.spawn(now_and_then(), "requests")
        assert statuses == [200] * 40
        assert len(found.engine.started) > 2, "nothing was ever sent away: the race was not run"
        assert sum(life.deaths for router in found.routers for life in router.activator.observer.lives()) == 0


async def test_a_router_that_may_not_make_room_goes_over_its_limit_of_pools_and_the_other_one_makes_it(
    tmp_path: Path,
) -> None:
    match = make_match(parameters=(Parameter(name="n", type="int"),))
    async with routers(tmp_path, max_pools=2) as found:
        await found.serve(match)
        for number in range(3):
            assert (await found.ask(SECOND, match, f"/?n={number}")).status == 200
            if number < 2:  # one that it is still to ask whether it is ready does not have to make room
                await found.until(lambda: {place.state for place in found.places(FIRST)} == {PlaceState.READY})
        await found.until(lambda: len(found.running(match.revision.id)) == 2)
        left = {'{"n":1}', '{"n":2}'}
        await found.until(lambda: {place.key.pool.parameters for place in found.places(FIRST)} == left)
        (life,) = found.routers[FIRST].activator.observer.lives()
        assert life.drains == {"evicted": 1}
        (other,) = found.routers[SECOND].activator.observer.lives()
        assert other.drains == {}


async def test_the_later_of_two_live_starts_of_one_number_stays(tmp_path: Path) -> None:
    match = make_match()
    async with routers(tmp_path) as found:
        await found.serve(match)
        await found.ask(FIRST, match)
        await found.engine.begin(key(match, 0, 2))
        await found.until(lambda: found.running(match.revision.id) == [key(match, 0, 2)])
        assert (await found.ask(SECOND, match)).body == b"0.2"
        assert not found.engine.killed


async def test_a_start_that_had_failed_can_come_alive_late_under_its_own_key(tmp_path: Path) -> None:
    match = make_match(scaledown_window=0.1)
    async with routers(tmp_path) as found:
        await found.serve(match)
        found.engine.failure = Failure("no_capacity", "no node has a GPU left")
        answer = await found.ask(FIRST, match)
        assert (answer.status, answer["modalnomad-error"]) == (503, "no_capacity")
        late: StubReplica = await found.engine.begin(key(match))
        await found.until(lambda: late.is_ready.is_set() and [path for method, path in late.asked if method == "POST"])
        await found.until(lambda: late.closed)
        assert len(found.engine.started) == 2, "nobody waited, so it idled out"
