"""The pool under every order of events: no place over-filled, nobody waiting forgotten, one wake at a time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, FailureCode, PoolKey, ReplicaKey, TcpAddress
from modalnomad.router.breaker import Breaker, Starts
from modalnomad.router.overdue import START_MARGIN
from modalnomad.router.phase import State
from modalnomad.router.places import (
    Deny,
    Drain,
    Effect,
    Ended,
    Grant,
    Kill,
    Place,
    PlaceState,
    Probe,
    Start,
    Ticket,
)
from modalnomad.router.pool import Pool
from modalnomad.scaling.decide import Policy, decide, fresh

KEY = PoolKey(RevisionId("r" * 32))
OVERSTAY = 20.0
CODES: tuple[FailureCode, ...] = ("start_failed", "startup_timeout", "no_capacity", "unplaceable", "replica_gone")


class PoolMachine(RuleBasedStateMachine):
    """Plays the router, the engine and the clients around one pool, and keeps its own books."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting: dict[int, Ticket] = {}
        self.leases: list[Place] = []
        self.pool: Pool
        self.alive: set[ReplicaKey] = set()
        self.ever: set[ReplicaKey] = set()
        self.drains: list[Drain] = []
        self.accepted: set[ReplicaKey] = set()
        self.next_ticket = 1

    @initialize(
        aim=st.integers(1, 3),
        extra=st.integers(0, 2),
        most=st.none() | st.integers(1, 4),
        least=st.integers(0, 1),
        single_use=st.booleans(),
        queue=st.integers(1, 8),
        crowd=st.integers(0, 6),
    )
    def begin(
        self, aim: int, extra: int, most: int | None, least: int, single_use: bool, queue: int, crowd: int
    ) -> None:
        self.policy = Policy(
            min=least,
            max=most,
            window=5.0,
            target=1 if single_use else aim,
            max_inputs=1 if single_use else aim + extra,
            single_use=single_use,
            start_limit=8.0,
        )
        self.queue = queue
        starts = Starts(Breaker(3, 1.0, 8.0), Breaker(1, 1.0, 8.0))
        self.pool = Pool(KEY, self.policy, starts_allowed=starts, queue_limit=queue, overstay=OVERSTAY, now=self.now)
        self.peak = fresh(self.policy)
        for _ in range(crowd):
            self.arrive(3.0)
        self.all_ready()

    # --- What happens ---

    @rule(timeouts=st.lists(st.floats(0.5, 30.0), min_size=1, max_size=5))
    def arrivals(self, timeouts: list[float]) -> None:
        for timeout in timeouts:
            self.arrive(timeout)

    def arrive(self, timeout: float) -> None:
        if (place := self.pool.take(self.now)) is not None:
            assert not self.waiting, "a newcomer went past somebody waiting"
            self.granted(place)
            if self.pool.crowded(place):
                self.apply(self.pool.settle(self.now))
            return
        ticket = Ticket(self.next_ticket, self.now + timeout)
        self.next_ticket += 1
        full = len(self.waiting) >= self.queue
        self.waiting[ticket.id] = ticket
        live, total = self.pool.places.counted_on(self.now), len(self.alive)
        wanted = self.most_wanted()
        effects = self.pool.arrive(ticket, self.now)
        if full and not self.pool.retired:
            assert effects == [Deny(ticket.id, "queue_full", retry_after=1.0)], "only the newcomer is refused"
        self.apply(effects)
        starts = len(self.alive) - total
        assert starts <= max(0, wanted - live), "woken too large"
        if starts and self.policy.max is not None:
            assert len(self.alive) <= self.policy.max

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[ticket]
        self.apply(self.pool.leave(ticket, self.now))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        place = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.apply(self.pool.release(place, self.now))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["busy", "refused", "timed out"]))
    def elsewhere(self, data: st.DataObject, how: str) -> None:
        place = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        if how == "busy":
            self.apply(self.pool.refused(place, self.now))
        else:
            self.apply(self.pool.strike(place, self.now, timed_out=how == "timed out"))
        self.apply(self.pool.release(place, self.now))

    @precondition(lambda self: self.of(PlaceState.STARTING))
    @rule()
    def all_ready(self) -> None:
        for place in self.of(PlaceState.STARTING):
            self.apply(self.pool.ready(place.key, self.now))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.of(*PlaceState)))
        self.apply(self.pool.ready(place.key, self.now))

    @precondition(lambda self: self.of(PlaceState.STARTING))
    @rule(data=st.data(), code=st.sampled_from(CODES), hope=st.booleans())
    def fail(self, data: st.DataObject, code: FailureCode, hope: bool) -> None:
        place = data.draw(st.sampled_from(self.of(PlaceState.STARTING)))
        self.alive.discard(place.key)
        self.apply(self.pool.ended(place.key, Failure(code, "it broke"), self.now, hope=hope))

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.alive, key=str)))
        self.alive.discard(key)
        self.apply(self.pool.ended(key, None, self.now))

    @rule(number=st.integers(0, 3), epoch=st.integers(1, 4))
    def another_router_started(self, number: int, epoch: int) -> None:
        key = ReplicaKey(KEY, number, epoch)
        if key in self.ever:
            return
        self.ever.add(key)
        self.alive.add(key)
        self.pool.seen(key, TcpAddress("127.0.0.1", 1), self.now, alive=True)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), why=st.sampled_from(["its node is drained", "its node is drained", ""]))
    def to_be_replaced(self, data: st.DataObject, why: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.alive, key=str)))
        self.pool.seen(key, TcpAddress("127.0.0.1", 1), self.now, alive=True, leaving=why)

    @precondition(lambda self: any(place.leaving for place in self.pool.places))
    @rule()
    def replace(self) -> None:
        decision = decide(self.now, self.pool.places.observed(len(self.pool.tickets)), self.policy, self.peak)
        total, ready = len(self.alive), len(self.pool.places.offered)
        owed = self.most_wanted() - self.pool.places.live
        self.apply(self.pool.replace(self.now, decision.wanted))
        assert len(self.alive) <= total + max(1, owed), "more than one successor at a time"
        assert self.policy.max is None or len(self.alive) <= max(self.policy.max + 1, total)
        assert not self.waiting or len(self.pool.places.offered) >= min(ready, 1), (
            "the only one closed under the waiting"
        )

    @rule(number=st.integers(0, 3), epoch=st.integers(1, 4))
    def stale_word(self, number: int, epoch: int) -> None:
        """Ready, ended and refused of replicas nobody has: nothing comes of it."""
        key = ReplicaKey(KEY, number, epoch)
        if key not in self.alive:
            assert self.pool.ready(key, self.now) == []
            assert self.pool.ended(key, None, self.now) == []
            assert self.pool.drain_refused(key, self.now) == []

    @rule()
    def sweep(self) -> None:
        decision = decide(self.now, self.pool.places.observed(len(self.pool.tickets)), self.policy, self.peak)
        self.peak = decision.state
        if self.pool.retired:
            return
        if decision.reason is None:
            assert (decision.start, decision.shed, decision.drain) == (0, frozenset(), None), "done without a reason"
            return
        if decision.start:
            self.apply(self.pool.add(decision.start, self.now, decision.reason))
        if decision.shed:
            self.apply(self.pool.shed(decision.shed, self.now, decision.reason))
        if self.policy.max is not None:
            outgoing = any(place.leaving for place in self.pool.places if place.live)
            assert self.pool.places.live <= self.policy.max + outgoing, "more in use than the maximum"
        if decision.drain is not None:
            effects = self.pool.close(decision.drain, self.now, self.policy.window, decision.reason)
            assert not (effects and self.waiting), "put to sleep with somebody waiting"
            self.apply(effects)

    @rule(
        least=st.integers(0, 2),
        most=st.none() | st.integers(1, 4),
        buffer=st.integers(0, 2),
        window=st.sampled_from([1.0, 5.0, 60.0]),
    )
    def scaled_by_hand(self, least: int, most: int | None, buffer: int, window: float) -> None:
        self.policy = replace(self.policy, min=least, max=most, buffer=buffer, window=window)
        total = len(self.alive)
        self.apply(self.pool.adopt(self.policy, self.now))
        assert most is None or len(self.alive) <= max(most, total)

    @precondition(lambda self: self.drains)
    @rule(data=st.data(), answer=st.sampled_from(["accepted", "refused", "silence"]))
    def drain(self, data: st.DataObject, answer: str) -> None:
        drain = self.drains.pop(data.draw(st.integers(0, len(self.drains) - 1)))
        place = self.pool.drain_sent(drain.key, self.now)
        if place is None:
            return
        assert not place.running, "drained with a lease out"
        full = self.policy.max is not None and self.pool.places.live >= max(1, self.policy.max)
        assert place.going or not self.waiting or full, "put to sleep with somebody waiting"
        if answer == "refused":
            self.apply(self.pool.drain_refused(drain.key, self.now, 1.0))
        elif answer == "accepted":
            self.accepted.add(drain.key)

    @rule(seconds=st.floats(0.01, 12.0), may_drain=st.booleans())
    def time_passes(self, seconds: float, may_drain: bool) -> None:
        self.now += seconds
        self.apply(self.pool.expire(self.now, may_drain=may_drain))
        for ticket in self.waiting.values():
            assert self.now < ticket.deadline + self.policy.start_limit + START_MARGIN, "left past its deadline"
            assert not self.pool.places.offered or self.now < ticket.deadline, "left past its deadline"
        for place in self.pool.places:
            if place.state is PlaceState.STARTING:
                assert self.now < place.asked_at + self.policy.start_limit + START_MARGIN

    @rule()
    def recheck(self) -> None:
        self.apply(self.pool.settle(self.now))

    @rule(count=st.integers(1, 2))
    def warm(self, count: int) -> None:
        self.apply(self.pool.warm(count, self.now))
        self.pool.floor = 0

    @rule(later=st.sampled_from([True, False, False, False]))
    def route_moves(self, later: bool) -> None:
        self.apply(self.pool.retire(self.now))
        assert not self.waiting, "left behind by its route"
        if not later:
            self.route_returns()

    @precondition(lambda self: self.pool.retired)
    @rule()
    def route_returns(self) -> None:
        self.apply(self.pool.revive(self.now))

    @precondition(lambda self: self.pool.idle)
    @rule()
    def evict(self) -> None:
        self.apply(self.pool.evict(self.now))

    # --- Books ---

    def most_wanted(self) -> int:
        """Replicas for all there is to do, those that can be reopened for it included."""
        counted = [place for place in self.pool.places if place.live or place.state is PlaceState.CLOSING]
        load = sum(max(place.running, self.policy.target) for place in counted)
        return self.policy.within(-(-(len(self.waiting) + load) // self.policy.target))

    def of(self, *states: PlaceState) -> list[Place]:
        return [place for place in self.pool.places if place.state in states]

    def granted(self, place: Place) -> None:
        assert place.key in self.alive, "granted a place in a dead replica"
        assert place.key not in self.accepted, "granted a place in a draining replica"
        assert place.state is PlaceState.READY or place.spent
        self.leases.append(place)

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Grant):
                assert effect.ticket == min(self.waiting), "not first come, first served"
                del self.waiting[effect.ticket]
                self.granted(effect.place)
            elif isinstance(effect, Deny):
                del self.waiting[effect.ticket]
                if effect.why in ("failed", "broken"):
                    assert not self.of(PlaceState.READY), "failed although a replica is ready"
                    assert not self.of(PlaceState.STARTING), "failed although a replica is starting"
            elif isinstance(effect, Start):
                assert effect.key not in self.ever, "the same replica started twice"
                assert effect.key.number not in {key.number for key in self.alive}, "a number started beside itself"
                assert not self.pool.retired, "started for a revision nobody serves"
                self.ever.add(effect.key)
                self.alive.add(effect.key)
            elif isinstance(effect, Ended):
                self.accepted.discard(effect.place.key)
            elif isinstance(effect, Probe):
                assert effect.place.key in self.alive, "a dead replica is probed"
            elif isinstance(effect, Drain):
                self.drains.append(effect)
            elif isinstance(effect, Kill):
                self.accepted.add(effect.key)

    @invariant()
    def books_agree(self) -> None:
        assert set(self.pool.tickets) == set(self.waiting), "a waiting request is lost"
        assert self.pool.running == len(self.leases)
        for place in self.pool.places:
            assert place.running == sum(lease is place for lease in self.leases)
            assert place.running <= self.policy.max_inputs, "over-filled"
        assert {place.key for place in self.pool.places} == self.alive

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        if self.waiting:
            for place in self.pool.places.offered:
                assert place.running >= self.policy.max_inputs or place.busy_until > self.now, "a lost wake-up"
            assert self.pool.state is not State.COLD, "waiting for nothing"

    @invariant()
    def one_at_a_time_is_replaced(self) -> None:
        out = self.of(PlaceState.CLOSING, PlaceState.DRAINING)
        assert sum(place.why is not None and place.why.kind == "replaced" for place in out) <= 1

    @invariant()
    def one_of_each_number_takes_requests(self) -> None:
        numbers = [place.key.number for place in self.pool.places.offered]
        assert len(numbers) == len(set(numbers))

    @invariant()
    def the_state_shows_the_places(self) -> None:
        state = self.pool.state
        assert (state is State.WARM) == bool(self.of(PlaceState.READY))
        assert state is not State.COLD or not self.alive

    def teardown(self) -> None:
        while self.leases:
            self.apply(self.pool.release(self.leases.pop(), self.now))
        assert self.pool.running == 0
        assert all(place.running == 0 for place in self.pool.places)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
