"""Replicas their engine wants replaced, two starts of one number, and routers that may not send replicas away."""

from __future__ import annotations

import pytest

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, PoolKey, ReplicaKey, TcpAddress
from modalnomad.router.breaker import Breaker, Starts
from modalnomad.router.departures import FORCE_AFTER
from modalnomad.router.places import Deny, Drain, Effect, Failed, Grant, Kill, Place, PlaceState, Start, Ticket
from modalnomad.router.pool import Pool
from modalnomad.router.replacing import LONGEST_PAUSE, PAUSE, QUIET
from modalnomad.scaling.decide import Observed, Policy, Reason, Seen, decide, fresh

KEY = PoolKey(RevisionId("r" * 32))
WHERE = TcpAddress("127.0.0.1", 1)
FULL = Failure("no_capacity", "no node has a GPU left")
BROKEN = Failure("start_failed", "exit code 70")


def make_pool(policy: Policy, ready: int) -> tuple[Pool, list[Place]]:
    starts = Starts(Breaker(3, 1.0, 8.0), Breaker(1, 1.0, 8.0))
    pool = Pool(KEY, policy, starts_allowed=starts, queue_limit=100, overstay=20.0, now=0.0)
    for key in started(pool.add(ready, 0.0, Reason("min", "test"))):
        pool.ready(key, 0.0)
    return pool, sorted(pool.places, key=lambda place: place.key.number)


def started(effects: list[Effect]) -> list[ReplicaKey]:
    return [effect.key for effect in effects if isinstance(effect, Start)]


def drains(effects: list[Effect]) -> list[Drain]:
    return [effect for effect in effects if isinstance(effect, Drain)]


def take(pool: Pool, now: float) -> Place:
    place = pool.take(now)
    assert place is not None
    return place


def to_leave(pool: Pool, *places: Place, why: str = "node n1 is drained") -> None:
    for place in places:
        pool.seen(place.key, WHERE, 0.0, alive=True, leaving=why)


def test_one_in_use_goes_after_its_successor_is_ready_and_after_its_last_request() -> None:
    pool, (old,) = make_pool(Policy(max=1), 1)
    lease = take(pool, 10.0)
    to_leave(pool, old)
    (start,) = [e for e in pool.replace(10.0, 1) if isinstance(e, Start)]
    assert (start.key, start.reason.kind) == (ReplicaKey(KEY, 1, 1), "replaced"), "one above the maximum"
    assert start.reason.text == "replaced: node n1 is drained"
    assert pool.replace(11.0, 1) == [], "its successor is not ready"
    assert old in pool.places.offered
    pool.ready(start.key, 12.0)
    assert drains(pool.replace(12.0, 1)) == []
    assert old.state is PlaceState.CLOSING
    assert take(pool, 12.0).key == start.key, "no new leases on the old one"
    (drain,) = drains(pool.release(lease, 13.0))
    assert (drain.key, drain.force, drain.reason.kind) == (old.key, False, "replaced")
    now = 13.0
    while not drain.force:
        assert now < 12.0 + FORCE_AFTER + 1.0
        pool.drain_sent(old.key, now)
        pool.drain_refused(old.key, now)
        assert old not in pool.places.offered, "other routers use it, this one does not"
        now += 0.3
        (drain,) = drains(pool.expire(now))
    assert now >= 12.0 + FORCE_AFTER, "what other routers had running there has had its time"


def test_nobody_waiting_brings_back_one_that_has_its_successor() -> None:
    pool, (old,) = make_pool(Policy(max=1), 1)
    take(pool, 1.0)
    to_leave(pool, old)
    (new,) = started(pool.replace(1.0, 1))
    pool.ready(new, 2.0)
    pool.replace(2.0, 1)
    take(pool, 2.0)
    assert not [e for e in pool.arrive(Ticket(1, 60.0), 3.0) if isinstance(e, Grant)]
    assert old.state is PlaceState.CLOSING


def test_an_idle_one_that_is_not_needed_just_goes_and_a_refusal_brings_a_successor() -> None:
    pool, (old,) = make_pool(Policy(), 1)
    to_leave(pool, old)
    (drain,) = drains(pool.replace(QUIET, 0))
    assert (drain.idle_for, drain.force) == (QUIET, False), "it is asked whether other routers use it"
    assert pool.drain_sent(old.key, QUIET) is old
    pool.drain_refused(old.key, QUIET, 0.5)
    assert old.state is PlaceState.READY
    assert started(pool.replace(QUIET, 0)) == [ReplicaKey(KEY, 1, 1)]


def test_an_idle_one_of_the_minimum_is_replaced_first() -> None:
    pool, (old,) = make_pool(Policy(min=1), 1)
    to_leave(pool, old)
    assert started(pool.replace(100.0, 1)) == [ReplicaKey(KEY, 1, 1)]


def test_one_at_a_time_and_the_least_busy_first() -> None:
    pool, places = make_pool(Policy(target=2, max_inputs=2), 3)
    for _ in range(5):
        take(pool, 1.0)
    to_leave(pool, *places)
    (first,) = started(pool.replace(1.0, 3))
    assert started(pool.replace(1.0, 3)) == []
    pool.ready(first, 2.0)
    pool.replace(2.0, 3)
    assert [place.state for place in places] == [PlaceState.READY, PlaceState.READY, PlaceState.CLOSING]
    assert pool.replace(3.0, 3) == [], "the first is not gone"
    pool.ended(places[2].key, None, 4.0)
    assert len(started(pool.replace(4.0, 3))) == 1


def test_those_to_be_replaced_are_chosen_last_and_are_capacity_all_the_same() -> None:
    pool, places = make_pool(Policy(target=1, max_inputs=1), 3)
    to_leave(pool, places[0], places[1])
    assert [take(pool, 1.0).key.number for _ in range(3)] == [2, 0, 1]
    to_leave(pool, places[0], why="")
    assert [place.key.number for place in pool.places.offered] == [0, 2, 1], "the drain of its node was called off"


def test_a_successor_that_fails_costs_nobody_anything_and_is_tried_again_later() -> None:
    pool, (old,) = make_pool(Policy(max=1), 1)
    take(pool, 10.0)
    to_leave(pool, old)
    pool.arrive(Ticket(1, 60.0), 10.0)
    now, pause = 10.0, PAUSE
    for _ in range(8):
        (new,) = started(pool.replace(now, 1))
        effects = pool.ended(new, BROKEN, now)
        assert [e.failure for e in effects if isinstance(e, Failed)] == [BROKEN]
        assert not any(isinstance(e, Deny | Start) for e in effects)
        assert pool.starts_allowed.open(now), "a breaker would let requests fail for it"
        assert pool.replace(now + pause - 0.1, 1) == []
        now, pause = now + pause, min(LONGEST_PAUSE, pause * 2)
    assert old.state is PlaceState.READY


def test_a_successor_that_hangs_is_ended_and_does_not_count_either() -> None:
    pool, (old,) = make_pool(Policy(max=1, start_limit=8.0), 1)
    take(pool, 10.0)
    to_leave(pool, old)
    (new,) = started(pool.replace(10.0, 1))
    effects = pool.expire(19.5)
    assert [e.key for e in effects if isinstance(e, Kill)] == [new]
    assert pool.starts_allowed.open(19.5)


def test_a_successor_somebody_waits_for_is_a_start_like_any_other() -> None:
    pool, (old,) = make_pool(Policy(max=1), 1)
    take(pool, 10.0)
    to_leave(pool, old)
    (new,) = started(pool.replace(10.0, 1))
    pool.arrive(Ticket(1, 60.0), 10.0)
    pool.ended(old.key, Failure("replica_gone", "its node was lost"), 11.0)
    effects = pool.ended(new, BROKEN, 12.0)
    assert [(e.ticket, e.why) for e in effects if isinstance(e, Deny)] == [(1, "failed")]


def test_without_room_for_a_successor_it_goes_when_it_runs_dry_and_the_next_starts_after_it() -> None:
    pool, (old,) = make_pool(Policy(max=1), 1)
    lease = take(pool, 10.0)
    to_leave(pool, old)
    (new,) = started(pool.replace(10.0, 1))
    pool.ended(new, FULL, 10.0)
    assert old.state is PlaceState.READY, "it goes on as long as it is in use"
    (drain,) = drains(pool.release(lease, 11.0))
    assert (drain.key, drain.idle_for, drain.force) == (old.key, 0.0, False)
    pool.drain_sent(old.key, 11.0)
    pool.arrive(Ticket(1, 60.0), 11.0)
    assert started(pool.ended(old.key, None, 12.0)) == [ReplicaKey(KEY, 0, 2)]


def test_while_somebody_waits_one_without_room_for_a_successor_is_used_again() -> None:
    pool, (old,) = make_pool(Policy(max=1), 1)
    lease = take(pool, 10.0)
    to_leave(pool, old)
    (new,) = started(pool.replace(10.0, 1))
    pool.ended(new, FULL, 10.0)
    pool.arrive(Ticket(1, 60.0), 10.5)
    assert [e.place for e in pool.release(lease, 11.0) if isinstance(e, Grant)] == [old]


def test_a_drain_that_is_forced_leaves_other_routers_the_time_of_a_request() -> None:
    pool, (old,) = make_pool(Policy(max=1, request_limit=30.0), 1)
    lease = take(pool, 0.0)
    to_leave(pool, old)
    (new,) = started(pool.replace(0.0, 1))
    pool.ready(new, 0.0)
    pool.replace(0.0, 1)
    (drain,) = drains(pool.release(lease, FORCE_AFTER))
    assert drain.force
    assert pool.drain_sent(old.key, FORCE_AFTER) is old
    assert not [e for e in pool.expire(FORCE_AFTER + 49.9) if isinstance(e, Kill)]
    assert [e.key for e in pool.expire(FORCE_AFTER + 50.0) if isinstance(e, Kill)] == [old.key]


def test_the_slow_part_of_scaling_lets_a_successor_be_and_sends_the_old_one_first() -> None:
    policy = Policy(min=1, max=1, window=5.0)
    both = Observed((Seen(0, "ready", idle_since=90.0, outgoing=True), Seen(1, "starting")))
    decision = decide(100.0, both, policy, fresh(policy))
    assert (decision.shed, decision.wanted) == (frozenset(), 1), "one may be above the maximum for its sake"
    three = Observed((Seen(0, "ready", outgoing=True), Seen(1, "ready"), Seen(2, "ready")))
    assert decide(0.0, three, policy, fresh(policy)).shed == {0, 2}, "the one to be replaced first"
    idle = Observed((Seen(0, "ready", outgoing=True), Seen(1, "ready"), Seen(2, "ready")))
    assert decide(100.0, idle, Policy(min=1, window=5.0), fresh(policy)).drain == 0


# --- Two live starts of one number ---


@pytest.mark.parametrize("higher_first", [True, False])
def test_of_two_live_starts_of_one_number_the_later_one_stays(higher_first: bool) -> None:
    pool, (lower,) = make_pool(Policy(), 0 if higher_first else 1)[0], (ReplicaKey(KEY, 0, 1),)
    higher = ReplicaKey(KEY, 0, 4)
    pool.seen(higher, WHERE, 0.0, alive=True)
    if higher_first:
        pool.ready(higher, 1.0)
        pool.seen(lower, WHERE, 1.0, alive=True)
        effects = pool.ready(lower, 2.0)
    else:
        assert pool.places.get(lower) in pool.places.offered, "it serves until the other one does"
        effects = pool.ready(higher, 2.0)
    assert [(e.key, e.reason.kind) for e in drains(effects)] == [(lower, "doubled")]
    assert [place.key for place in pool.places.offered] == [higher]
    pool.drain_sent(lower, 2.0)
    pool.drain_refused(lower, 2.0)
    assert [place.key for place in pool.places.offered] == [higher], "refused, it is asked again"


# --- A router that may not send replicas away ---


def test_one_closed_by_a_router_that_may_no_more_takes_requests_again() -> None:
    pool, (place,) = make_pool(Policy(), 1)
    pool.close(0, 100.0, 60.0, Reason("idle", "idle"))
    assert pool.expire(101.0, may_drain=False) == []
    assert place.state is PlaceState.READY


def test_one_that_was_called_off_by_another_router_is_started_again_within_the_breaker() -> None:
    pool, _ = make_pool(Policy(), 0)
    (key,) = started(pool.arrive(Ticket(1, 60.0), 0.0))
    now = 0.0
    for _ in range(2):
        assert not [e for e in pool.ended(key, None, now) if isinstance(e, Deny)]
        now += 0.3
        (key,) = started(pool.settle(now))
    (denied,) = (e for e in pool.ended(key, None, now) if isinstance(e, Deny))
    assert (denied.why, denied.failure) == ("failed", Failure("start_failed", "It ended before it was ready."))


@pytest.mark.parametrize("hung", [False, True])
def test_one_out_of_reach_is_ended_by_who_may_or_if_a_request_hung_in_it(hung: bool) -> None:
    pool, (place,) = make_pool(Policy(), 1)
    pool.strike(place, 0.0, timed_out=False, hung=hung)
    assert bool([e for e in pool.expire(30.0, may_drain=False) if isinstance(e, Kill)]) is hung
    assert bool([e for e in pool.expire(30.0) if isinstance(e, Kill)]) is not hung
