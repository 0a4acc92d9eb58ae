"""Replicas to be replaced, all of them and in use: they all go, and at no time fewer can take requests than before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, PoolKey, ReplicaKey, TcpAddress
from modalnomad.router.breaker import Breaker, Starts
from modalnomad.router.places import Deny, Drain, Effect, Grant, Kill, Place, Start, Ticket
from modalnomad.router.pool import Pool
from modalnomad.scaling.decide import Policy, Reason, decide, fresh
from modalnomad.settings import ScalingSettings

KEY = PoolKey(RevisionId("r" * 32))
LOOK = ScalingSettings().interval
START = 3
"""Looks from a start to ready, or to its failure."""


class World:
    """A pool under steady load: as many requests as it has places, each for a few looks."""

    def __init__(self, policy: Policy, count: int, fails: list[bool]) -> None:
        self.now, self.policy = 0.0, policy
        starts = Starts(Breaker(3, 1.0, 8.0), Breaker(1, 1.0, 8.0))
        self.pool = Pool(KEY, policy, starts_allowed=starts, queue_limit=1000, overstay=20.0, now=0.0)
        self.leases: list[tuple[float, Place]] = []
        self.starting: dict[ReplicaKey, float] = {}
        self.fails = list(fails)
        self.waiting = 0
        self.tickets = 0
        self.peak = fresh(policy)
        for effect in self.pool.add(count, 0.0, Reason("min", "test")):
            assert isinstance(effect, Start)
            self.pool.ready(effect.key, 0.0)
        self.old = [place.key for place in self.pool.places]
        for key in self.old:
            self.pool.seen(key, TcpAddress("127.0.0.1", 1), 0.0, alive=True, leaving="its node is drained")

    def apply(self, effects: list[Effect]) -> None:
        """All replicas are obedient."""
        for effect in effects:
            assert not isinstance(effect, Deny | Kill), effect
            if isinstance(effect, Start):
                self.starting[effect.key] = self.now + START * LOOK
            elif isinstance(effect, Grant):
                self.waiting -= 1
                self.leases.append((self.now + 1.0, effect.place))
            elif isinstance(effect, Drain) and self.pool.drain_sent(effect.key, self.now) is not None:
                self.apply(self.pool.ended(effect.key, None, self.now))

    def look(self, demand: int) -> None:
        """A quarter of a second passes."""
        self.now += LOOK
        for until, place in [lease for lease in self.leases if lease[0] <= self.now]:
            self.leases.remove((until, place))
            self.apply(self.pool.release(place, self.now))
        for key in [key for key, at in self.starting.items() if at <= self.now]:
            del self.starting[key]
            failed = bool(self.fails) and self.fails.pop()
            broken = Failure("start_failed", "exit code 70")
            self.apply(self.pool.ended(key, broken, self.now) if failed else self.pool.ready(key, self.now))
        while len(self.leases) + self.waiting < demand:
            self.tickets += 1
            self.waiting += 1
            self.apply(self.pool.arrive(Ticket(self.tickets, self.now + 600.0), self.now))
        self.apply(self.pool.expire(self.now))
        decision = decide(self.now, self.pool.places.observed(len(self.pool.tickets)), self.policy, self.peak)
        self.peak = decision.state
        if decision.start and decision.reason is not None:
            self.apply(self.pool.add(decision.start, self.now, decision.reason))
        if decision.drain is not None and decision.reason is not None:
            self.apply(self.pool.close(decision.drain, self.now, self.policy.window, decision.reason))
        elif not decision.shed:
            self.apply(self.pool.replace(self.now, decision.wanted))


@given(
    count=st.integers(1, 4),
    target=st.integers(1, 3),
    capped=st.booleans(),
    idle=st.integers(0, 2),
    fails=st.lists(st.booleans(), max_size=3),
)
def test_all_are_replaced_and_capacity_never_falls(
    count: int, target: int, capped: bool, idle: int, fails: list[bool]
) -> None:
    world = World(Policy(min=count, max=count if capped else None, target=target, max_inputs=target), count, fails)
    demand = max(1, count * target - idle)
    for _ in range(1000):
        world.look(demand)
        places = world.pool.places
        assert len(places.offered) >= count, "fewer take requests than before"
        assert len([place for place in places if place.live]) <= count + 1, "one more at a time"
        if not any(places.get(key) for key in world.old):
            break
    else:
        raise AssertionError(f"still there after {world.now:g} s: {[key.name for key in world.old if places.get(key)]}")
