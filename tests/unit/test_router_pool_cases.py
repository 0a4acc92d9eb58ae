"""Single cases of the pool, the breaker and the slow part of scaling, with the time as an argument."""

from __future__ import annotations

import pytest

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, PoolKey, ReplicaKey, TcpAddress
from modalnomad.router.breaker import Breaker, Starts
from modalnomad.router.phase import State
from modalnomad.router.places import Deny, Drain, Effect, Grant, IllegalMove, Kill, Place, PlaceState, Start, Ticket
from modalnomad.router.pool import Pool
from modalnomad.scaling.decide import Decision, Observed, Policy, Reason, Seen, decide, fresh
from modalnomad.scaling.window import Peak

KEY = PoolKey(RevisionId("r" * 32))
BROKEN = Failure("start_failed", "exit code 70")
AWAY = Failure("start_failed", "Nomad does not answer", away=True)
LOST = Failure("replica_gone", "its machine is lost")


def make_pool(policy: Policy | None = None, *, failures: int = 3) -> Pool:
    starts = Starts(Breaker(failures, 1.0, 8.0), Breaker(1, 1.0, 8.0))
    return Pool(KEY, policy or Policy(), starts_allowed=starts, queue_limit=100, overstay=20.0, now=0.0)


def arrive(pool: Pool, ids: range, now: float = 0.0) -> list[Effect]:
    return [effect for id in ids for effect in pool.arrive(Ticket(id, now + 60.0), now)]


def started(effects: list[Effect]) -> list[ReplicaKey]:
    return [effect.key for effect in effects if isinstance(effect, Start)]


def granted(effects: list[Effect]) -> list[Place]:
    return [effect.place for effect in effects if isinstance(effect, Grant)]


def wake(pool: Pool, count: int, now: float = 0.0) -> list[Place]:
    keys = started(arrive(pool, range(count), now))
    return [place for key in keys for place in granted(pool.ready(key, now))]


@pytest.mark.parametrize(
    ("requests", "policy", "replicas"),
    [
        (1, Policy(), 1),
        (64, Policy(target=8, max_inputs=10), 8),
        (65, Policy(target=8, max_inputs=10), 9),
        (64, Policy(target=8, max_inputs=10, max=3), 3),
        (1, Policy(min=2), 2),
        (5, Policy(), 5),
    ],
)
def test_a_wake_has_the_right_size_the_first_time(requests: int, policy: Policy, replicas: int) -> None:
    pool = make_pool(policy)
    keys = started(arrive(pool, range(requests)))
    assert [key.number for key in keys] == list(range(replicas))
    assert (pool.state, pool.wakes) == (State.WAKING, 1)


def test_low_numbers_fill_to_the_target_then_the_least_loaded_to_the_maximum() -> None:
    pool = make_pool(Policy(target=2, max_inputs=3))
    for key in started(pool.add(2, 0.0, Reason("min", "test"))):
        pool.ready(key, 0.0)
    order = []
    while (place := pool.take(0.0)) is not None:
        order.append(place.key.number)
    assert order == [0, 0, 1, 1, 0, 1]


def test_avoided_replicas_are_taken_only_when_there_is_no_other() -> None:
    pool = make_pool(Policy(target=1, max_inputs=2))
    keys = started(pool.add(2, 0.0, Reason("min", "test")))
    for key in keys:
        pool.ready(key, 0.0)
    avoid = frozenset({keys[0]})
    order = [place.key for _ in range(4) if (place := pool.take(0.0, avoid)) is not None]
    assert order == [keys[1], keys[1], keys[0], keys[0]]


def test_waiters_fail_only_when_nothing_is_left_to_wait_for() -> None:
    pool = make_pool()
    first, second = started(arrive(pool, range(2)))
    effects = pool.ended(first, BROKEN, 0.1)
    assert not any(isinstance(effect, Deny) for effect in effects)
    effects = pool.ended(second, BROKEN, 0.2)
    assert [(e.ticket, e.why, e.failure) for e in effects if isinstance(e, Deny)] == [
        (0, "failed", BROKEN),
        (1, "failed", BROKEN),
    ]
    assert pool.state is State.COLD


def test_a_failed_wake_poisons_nothing_for_the_next_request() -> None:
    pool = make_pool()
    (key,) = started(arrive(pool, range(1)))
    pool.ended(key, BROKEN, 0.1)
    (again,) = started(arrive(pool, range(1, 2), 0.1))
    assert (again.number, again.epoch) == (0, 2)


def test_an_epoch_is_above_all_the_engine_lists() -> None:
    pool = make_pool()
    pool.seen(ReplicaKey(KEY, 0, 7), None, 0.0, alive=False)
    assert started(arrive(pool, range(1))) == [ReplicaKey(KEY, 0, 8)]


def test_a_drain_not_yet_sent_is_cancelled_by_a_request() -> None:
    pool = make_pool()
    (place,) = wake(pool, 1)
    pool.release(place, 1.0)
    (drain,) = [e for e in pool.close(0, 100.0, 60.0, Reason("idle", "idle")) if isinstance(e, Drain)]
    assert pool.state is State.COOLING
    assert granted(arrive(pool, range(1, 2), 100.0)) == [place]
    assert pool.drain_sent(drain.key, 100.0) is None
    assert place.state is PlaceState.READY


def test_a_stale_drain_of_a_replica_in_use_is_not_sent() -> None:
    pool = make_pool()
    (place,) = wake(pool, 1)
    pool.release(place, 1.0)
    pool.close(0, 100.0, 60.0, Reason("idle", "idle"))
    arrive(pool, range(1, 2), 100.0)
    pool.retire(100.0)
    assert place.state is PlaceState.CLOSING
    assert pool.drain_sent(place.key, 100.0) is None
    assert [e.key for e in pool.release(place, 101.0) if isinstance(e, Drain)] == [place.key]
    assert pool.drain_sent(place.key, 101.0) is place


def test_a_request_during_a_drain_starts_the_next_replica_unless_the_maximum_forbids_it() -> None:
    for most, numbers in ((None, [1]), (1, [])):
        pool = make_pool(Policy(max=most))
        (place,) = wake(pool, 1)
        pool.release(place, 1.0)
        pool.close(0, 100.0, 60.0, Reason("idle", "idle"))
        pool.drain_sent(place.key, 100.0)
        assert [key.number for key in started(arrive(pool, range(1, 2), 100.0))] == numbers
        if most == 1:
            assert [key.epoch for key in started(pool.ended(place.key, None, 101.0))] == [2]


def test_a_single_use_replica_is_never_reopened() -> None:
    pool = make_pool(Policy(single_use=True))
    (place,) = wake(pool, 1)
    assert (place.state, granted(arrive(pool, range(1, 2)))) == (PlaceState.CLOSING, [])
    pool.release(place, 1.0)
    assert pool.drain_sent(place.key, 1.0) is place
    pool.drain_refused(place.key, 1.0)
    assert place.state is PlaceState.CLOSING
    assert [effect.key for effect in pool.expire(2.0) if isinstance(effect, Drain)] == [place.key]


def test_a_newcomer_does_not_go_past_somebody_waiting_for_a_busy_replica() -> None:
    pool = make_pool(Policy(max=1))
    (place,) = wake(pool, 1)
    pool.refused(place, 0.0)
    pool.release(place, 0.0)
    assert granted(arrive(pool, range(1, 2))) == []
    assert pool.take(5.0) is None
    assert [effect.ticket for effect in pool.settle(5.0) if isinstance(effect, Grant)] == [1]


def test_no_room_but_something_on_its_way_out_is_waited_for() -> None:
    pool = make_pool()
    full = Failure("no_capacity", "no GPU is free")
    (key,) = started(arrive(pool, range(1)))
    effects = pool.ended(key, full, 0.0, hope=True)
    assert not any(isinstance(effect, Deny) for effect in effects)
    assert started(pool.settle(0.1)) == []
    (again,) = started(pool.settle(0.3))
    effects = pool.ended(again, full, 0.3, hope=False)
    assert [effect.why for effect in effects if isinstance(effect, Deny)] == ["failed"]


def test_a_lone_replica_is_never_set_aside_for_a_time_out() -> None:
    pool = make_pool()
    (place,) = wake(pool, 1)
    assert pool.strike(place, 1.0, timed_out=True) == []
    pool.release(place, 1.0)
    assert pool.take(1.0) is place


def test_a_replica_out_of_reach_is_soon_no_longer_counted_on() -> None:
    pool = make_pool()
    (place,) = wake(pool, 1)
    pool.strike(place, 1.0, timed_out=False)
    pool.release(place, 1.0)
    assert started(arrive(pool, range(5, 6), now=1.1)) == [], "it may answer in a moment"
    (other,) = started(pool.settle(1.6))
    assert other.number != place.key.number
    assert started(pool.settle(3.0)) == [], "one for one"
    assert [place.key for place in granted(pool.ready(other, 3.1))] == [other]


def test_a_replica_that_keeps_saying_busy_is_asked_less_and_less_often() -> None:
    pool = make_pool()
    (place,) = wake(pool, 1)
    pauses = []
    for _ in range(8):
        pool.refused(place, 0.0)
        pauses.append(place.busy_until)
    assert pauses == pytest.approx([0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 0.8, 0.8])


def test_what_overstays_is_killed() -> None:
    pool = make_pool(Policy(start_limit=5.0))
    (place,) = wake(pool, 1)
    pool.release(place, 0.0)
    pool.close(0, 60.0, 60.0, Reason("idle", "idle"))
    pool.drain_sent(place.key, 60.0)
    assert pool.expire(79.0) == []
    assert [effect.key for effect in pool.expire(80.0) if isinstance(effect, Kill)] == [place.key]
    assert pool.expire(90.0) == []


def test_illegal_moves_raise() -> None:
    pool = make_pool()
    (place,) = wake(pool, 1)
    with pytest.raises(IllegalMove):
        pool.evict(0.0)
    with pytest.raises(IllegalMove):
        place.move(PlaceState.STARTING, 0.0)
    pool.release(place, 0.0)
    with pytest.raises(IllegalMove):
        pool.release(place, 0.0)


def test_the_breaker_opens_doubles_tries_one_and_closes() -> None:
    breaker = Breaker(2, 1.0, 3.0)
    breaker.failed(0.0, BROKEN)
    assert breaker.allowed(0.0) is None
    breaker.failed(0.0, BROKEN)
    breaker.failed(0.5, BROKEN)  # a late one of the same wake
    assert (breaker.allowed(0.9), breaker.allowed(1.0)) == (0, 1)
    assert breaker.retry_after(0.25) == 0.75
    for now, wait in ((1.0, 2.0), (3.0, 3.0), (6.0, 3.0)):
        breaker.began(now)
        assert breaker.allowed(now) == 0, "one trial at a time"
        breaker.failed(now, BROKEN)
        assert breaker.retry_after(now) == wait
    breaker.began(9.0)
    breaker.succeeded()
    assert breaker.allowed(9.0) is None
    assert breaker.last is None


def test_while_the_breaker_is_open_requests_are_refused_with_the_time_of_the_next_try() -> None:
    pool = make_pool(failures=1)
    (key,) = started(arrive(pool, range(1)))
    pool.ended(key, BROKEN, 0.0)
    assert arrive(pool, range(1, 2), 0.0) == [Deny(1, "broken", BROKEN, 1.0)]
    effects = arrive(pool, range(2, 7), 1.0)
    assert len(started(effects)) == 1, "one trial, however many wait"


def test_while_a_server_is_away_the_pause_between_tries_does_not_grow() -> None:
    """So that what sleeps can wake a moment after it is back."""
    breaker = Breaker(2, 1.0, 60.0)
    for now in (0.0, 0.0, 1.0, 2.0, 3.0):
        breaker.began(now)
        breaker.failed(now, AWAY)
    assert breaker.retry_after(3.0) == 1.0
    for now, wait in ((4.0, 1.0), (5.0, 2.0)):  # it is back, and the program is broken
        breaker.began(now)
        breaker.failed(now, BROKEN)
        assert breaker.retry_after(now) == wait


def test_a_start_that_goes_with_its_machine_is_made_again_and_no_fault() -> None:
    pool = make_pool(failures=1)
    for epoch in (1, 2):
        (key,) = started(arrive(pool, range(1)) if epoch == 1 else pool.settle(epoch))
        effects = pool.ended(key, LOST, epoch + 0.1)
        assert (key.epoch, [effect for effect in effects if isinstance(effect, Deny)]) == (epoch, [])
    (last,) = started(pool.settle(3.0))
    assert [place.key for place in granted(pool.ready(last, 3.1))] == [last]


def test_one_that_is_started_again_elsewhere_by_itself_is_waited_for() -> None:
    pool = make_pool()
    (key,) = started(arrive(pool, range(1)))
    pool.ended(key, LOST, 0.1)
    pool.seen(key, TcpAddress("10.0.0.2", 20000), 0.15, alive=True)
    assert not started(pool.settle(1.0)), "there is one that starts"
    assert [place.key for place in granted(pool.ready(key, 1.1))] == [key]


def test_one_that_failed_as_it_ended_did_not_go_with_its_machine() -> None:
    """Its exit method raised, say: the next one is not waited with, and one that never got ready failed by a fault."""
    failure = Failure("replica_gone", "its exit method failed", exit_code=78)
    pool = make_pool(failures=1)
    (place,) = wake(pool, 1)
    pool.release(place, 1.0)
    pool.ended(place.key, failure, 1.0)
    (key,) = started(arrive(pool, range(2, 3), 1.0))
    effects = pool.ended(key, failure, 1.1)
    assert [effect.failure for effect in effects if isinstance(effect, Deny)] == [failure]
    assert not started(arrive(pool, range(3, 4), 1.5)), "the breaker is open"


def test_what_went_with_its_machine_may_be_started_elsewhere_by_itself_before_another_one_is() -> None:
    pool = make_pool()
    first, second = wake(pool, 2)
    for place in (first, second):
        pool.release(place, 1.0)
        pool.ended(place.key, LOST, 1.0)
    assert not started(arrive(pool, range(2, 4), 1.0))
    pool.seen(first.key, TcpAddress("10.0.0.2", 20000), 1.1, alive=True)
    (key,) = started(pool.settle(1.3))
    assert key.number == 1, "the other one is not, and has been waited for long enough"


# --- the slow part ---


def at(now: float, *replicas: Seen, policy: Policy, waiting: int = 0, peak: Peak | None = None) -> Decision:
    return decide(now, Observed(replicas, waiting), policy, peak or fresh(policy))


def idle(number: int, since: float = 0.0) -> Seen:
    return Seen(number, "ready", 0, since)


def test_the_highest_numbered_idle_replica_goes_one_at_a_time() -> None:
    policy = Policy(window=60)
    replicas = (idle(0), idle(1), Seen(2, "ready", 1))
    assert at(59.0, *replicas, policy=policy).drain is None
    assert at(60.0, *replicas, policy=policy).drain == 1
    assert at(60.0, *replicas, policy=policy).reason == Reason("idle", "idle for 60 s")
    assert at(60.0, *replicas, Seen(3, "leaving"), policy=policy).drain is None
    assert at(60.0, *replicas, policy=policy, waiting=3).drain is None


def test_the_minimum_is_started_and_kept() -> None:
    policy = Policy(min=2, window=1)
    assert at(0.0, policy=policy).start == 2
    assert at(100.0, idle(0), idle(1), policy=policy).drain is None
    assert at(100.0, idle(0), idle(1), idle(2), policy=policy).drain == 2


def test_what_is_above_a_lowered_maximum_goes_at_once_the_least_useful_first() -> None:
    policy = Policy(max=1, window=60)
    replicas = (Seen(0, "ready", 1), idle(1), Seen(2, "ready", 1), Seen(3, "starting"))
    decision = at(1.0, *replicas, policy=policy, waiting=5)
    assert (set(decision.shed), decision.start, decision.drain) == ({3, 1, 2}, 0, None)
    assert decision.reason == Reason("max", "max_containers=1, of 4 running")
    assert at(1.0, *replicas, policy=Policy(max=3)).shed == {3}
    assert not at(1.0, *replicas, policy=Policy(max=4)).shed


def test_a_window_that_changes_keeps_the_peak() -> None:
    busy = at(0.0, *(Seen(number, "ready", 1) for number in range(3)), policy=Policy(buffer=1, window=600)).state
    shorter = at(10.0, policy=Policy(buffer=1, window=12), peak=busy)
    assert (shorter.state.span, shorter.state.value(10.0)) == (12.0, 3)
    assert shorter.state.value(30.0) == 0
    assert at(10.0, policy=Policy(window=600), peak=shorter.state).state.value(600.0) == 3


def test_the_buffer_is_kept_while_the_pool_is_in_use() -> None:
    policy = Policy(buffer=2, window=60)
    busy = at(0.0, Seen(0, "ready", 1), policy=policy)
    assert (busy.start, busy.reason) == (2, Reason("buffer", "buffer_containers=2 beside 1 in use"))
    rest = (idle(0), idle(1), idle(2))
    assert at(61.0, *rest, policy=policy, peak=busy.state).drain == 2
    later = at(200.0, *rest, policy=policy, peak=busy.state)
    assert (later.start, later.drain) == (0, 2)
    assert at(30.0, idle(0), policy=policy, peak=busy.state).start == 1


def test_the_maximum_holds_for_everything() -> None:
    policy = Policy(min=5, max=2, buffer=3)
    assert at(0.0, policy=policy).start == 2
    assert at(0.0, Seen(0, "ready", 1), Seen(1, "leaving"), policy=policy).start == 0


def test_the_peak_forgets() -> None:
    peak = Peak(span=12.0)
    for now in range(0, 100, 2):
        peak = peak.seen(float(now), 9 if now == 0 else 1)
        assert peak.value(float(now)) == (9 if now <= 12 else 1)
        assert len(peak.buckets) <= 13
    assert peak.value(1000.0) == 0


def test_surplus_of_a_lowered_maximum_is_not_taken_back_for_those_waiting() -> None:
    pool = make_pool(Policy())
    for key in started(arrive(pool, range(2))):
        pool.ready(key, 0.0)
    first, second = pool.places.offered
    pool.adopt(Policy(max=1), 1.0)
    assert pool.shed({1}, 1.0, Reason("max", "test")) == []
    assert arrive(pool, range(2, 3), 2.0) == []
    effects = pool.release(second, 3.0)
    assert [type(effect) for effect in effects] == [Drain]
    assert pool.release(first, 4.0) == [Grant(2, first)]
