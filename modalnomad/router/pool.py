"""One pool: its replicas, its places, who waits. Pure: every change takes `now` and returns the effects it causes.

Its state is drawn in `phase.py`, that of its replicas in `places.py`. There is one wake at a time: more demand while
WAKING raises how many are wanted, and a start that failed is not replaced at once. Nobody waiting is dropped for a
newcomer, and nobody waiting fails while a replica is ready or starting.
"""

from __future__ import annotations

from collections.abc import Collection

from modalnomad.model.replica import Address, Failure, PoolKey, ReplicaKey
from modalnomad.router.breaker import CALLED_OFF, Starts
from modalnomad.router.departures import Departures
from modalnomad.router.overdue import START_MARGIN, overdue
from modalnomad.router.phase import Phase, State
from modalnomad.router.places import (
    Deny,
    Effect,
    Ended,
    Failed,
    Grant,
    IllegalMove,
    Opened,
    Place,
    PlaceState,
    Probe,
    Recheck,
    Start,
    Ticket,
)
from modalnomad.router.queue import Queue
from modalnomad.router.replacing import Replacing, Step
from modalnomad.router.roster import STRIKE_PATIENCE, Roster
from modalnomad.scaling.decide import Kind, Policy, Reason

BUSY_PAUSE = 0.025
"""Seconds a replica is not offered after its runner said Busy; doubled each time in a row, up to 0.8 s."""


class Pool:
    """`starts_allowed`: its breakers. `overstay`: seconds a drained replica may take to end."""

    def __init__(
        self,
        key: PoolKey,
        policy: Policy,
        *,
        starts_allowed: Starts,
        queue_limit: int,
        overstay: float,
        now: float,
    ) -> None:
        self.key = key
        self.policy = policy
        self.places = Roster(key, policy)
        self.tickets = Queue(queue_limit)
        self.running = 0
        """Leases out, those on replicas that have died included."""
        self.floor = 0
        """Replicas asked for beside demand (`warm`)."""
        self.retired = False
        self.evicted = False
        self.used_at = now
        self.starts = 0
        self._phase = Phase()
        self.starts_allowed = self._may = starts_allowed
        self._overstay = overstay
        self._departures = Departures(self.places, starts_allowed)
        self._replacing = Replacing(self.places)

    # --- Requests ---------------------------------------------------------------------------------------------

    def take(self, now: float, avoid: frozenset[ReplicaKey] = frozenset()) -> Place | None:
        """A free place, already counted; None: the request has to queue. When `crowded`, call `settle` after it."""
        if self.tickets or self.retired:
            return None
        place = self.places.choose(now, avoid)
        if place is not None:
            self._seat(place, now)
            if place.spent:
                self._follow()
        return place

    def crowded(self, place: Place) -> bool:
        """The last lease took the place past its target, so that another replica may be due."""
        return place.running > self.policy.target or place.spent

    def arrive(self, ticket: Ticket, now: float) -> list[Effect]:
        """Queue. The answer (Grant or Deny) may be among the effects."""
        if self.retired:
            return [Deny(ticket.id, "moved")]
        if self.tickets.full:
            return [Deny(ticket.id, "queue_full", retry_after=1.0)]
        self.used_at = now
        self.evicted = False
        self.tickets[ticket.id] = ticket
        return self.settle(now)

    def leave(self, ticket: int, now: float) -> list[Effect]:
        """The waiting client went away. What was started for it goes on."""
        self.tickets.pop(ticket, None)
        return self.settle(now)

    def release(self, place: Place, now: float) -> list[Effect]:
        """A lease ended: the last byte has passed, or the replica did not take the request."""
        if place.running <= 0:
            raise IllegalMove(f"{place.key}: released more often than leased")
        place.running -= 1
        self.running -= 1
        self.used_at = now
        if not place.running:
            place.idle_since = now
            if place.state is PlaceState.CLOSING:
                return [self._departures.again(place, now), *self.settle(now)]
            if place is self._replacing.dry and not self.tickets and place.state is PlaceState.READY:
                return [*self._go(Step("drain", place), now), *self.settle(now)]
        return self.settle(now) if self.tickets else []

    def refused(self, place: Place, now: float) -> list[Effect]:
        """Its runner said Busy: others use it too, or it is leaving. The lease stays until it is released."""
        place.refusals += 1
        place.busy_until = now + BUSY_PAUSE * 2 ** min(place.refusals - 1, 5)
        return [Recheck(place.busy_until)]

    def strike(self, place: Place, now: float, *, timed_out: bool, hung: bool = False) -> list[Effect]:
        """It does not answer. Refused: not offered until a probe is answered, and soon no longer counted on. Timed out:
        not offered for a moment, and that only while there is another one."""
        if place.removed or place.state is not PlaceState.READY:
            return []
        if timed_out:
            return self.refused(place, now) if len(self.places.offered) > 1 else []
        self.places.move(place, PlaceState.STRUCK, now)
        place.hung = hung
        return [Probe(place), Recheck(now + STRIKE_PATIENCE), *self.settle(now)]

    # --- Replicas ---------------------------------------------------------------------------------------------

    def seen(
        self, key: ReplicaKey, address: Address | None, now: float, *, alive: bool, leaving: str = ""
    ) -> Place | None:
        """The engine lists this replica. A live one that is not known (another router's, or one that got its place long
        after it was given up) is taken in as starting. `leaving`: see Place."""
        place = self.places.take_in(key, address, now) if alive else self.places.hear_of(key, address)
        if place is not None:
            self.places.mark(place, leaving)
        self._follow()
        return place

    def ready(self, key: ReplicaKey, now: float) -> list[Effect]:
        """It answered that it is ready. Of a replica that has ended, or is leaving, nothing is believed."""
        place = self.places.get(key)
        if place is None or place.state not in (PlaceState.STARTING, PlaceState.STRUCK):
            return []
        if place.state is PlaceState.STARTING:
            self._may.succeeded()
            place.idle_since = now
        self.places.move(place, PlaceState.READY, now)
        effects: list[Effect] = [Opened(place)]
        if self.retired:
            effects += self._departures.close(place, now, Reason("retired", "no longer served"))
        return effects + self.settle(now)

    def ended(self, key: ReplicaKey, failure: Failure | None, now: float, *, hope: bool = False) -> list[Effect]:
        """Its process is gone, or was never made. `hope`: something of ours is on its way out, so no room now does not
        mean no room soon."""
        place = self.places.remove(key)
        if place is None:
            return []
        starting = place.state is PlaceState.STARTING
        effects: list[Effect] = [Ended(place, None if starting else failure)]
        if starting:
            effects += self._start_failed(place, failure or CALLED_OFF, now, hope=hope)
        elif failure is not None and failure.lost:
            effects.append(Recheck(self._may.pause(now)))
        return effects + self.settle(now)

    def close(self, number: int, now: float, idle_for: float, reason: Reason) -> list[Effect]:
        """Drain this replica if nothing runs on it and nobody waits; the runner has the last word."""
        if self.tickets or self.floor:
            return []
        found = [p for p in self.places.offered if p.key.number == number and not p.running]
        closed = self._departures.close(found[0], now, reason, idle_for=idle_for) if found else []
        return [*closed, *self.settle(now)] if found else []

    def shed(self, numbers: Collection[int], now: float, reason: Reason) -> list[Effect]:
        """These take no more requests, whoever waits, and go after the last one they hold."""
        found = [place for place in self.places if place.live and place.key.number in numbers]
        return self._departures.dismiss(found, now, reason) + self.settle(now)

    def drain_sent(self, key: ReplicaKey, now: float) -> Place | None:
        """The drain is about to be sent. None: it no longer holds (reopened, in use, gone)."""
        place = self._departures.sent(key, now)
        self._follow()
        return place

    def drain_refused(self, key: ReplicaKey, now: float, idle_for: float = 0.0) -> list[Effect]:
        """Something runs on it, or ran `idle_for` seconds ago, by another router."""
        place = self._departures.refused(key, now, idle_for, retired=self.retired)
        if place is None:
            return []
        self.evicted &= place.state is not PlaceState.READY
        return self.settle(now)

    def replace(self, now: float, wanted: int) -> list[Effect]:
        """The next step for those their engine wants replaced. `wanted`: see Replacing."""
        if self.retired:
            return []
        over, waiting = not self._room(len(self.places.offered) - 1), bool(self.tickets or self.floor)
        step = self._replacing.step(now, wanted, waiting=waiting, over=over)
        return [] if step is None else self._go(step, now) + self.settle(now)

    # --- The pool as a whole ----------------------------------------------------------------------------------

    def settle(self, now: float) -> list[Effect]:
        """Seat who waits, reopen what was closing, start what is missing; deny only when nothing is left to wait for.

        Raises IllegalMove for a defect only."""
        effects = self._departures.outlived(now) + self._seat_waiting(now)
        if self.tickets and not self.retired:
            for place in self.places.closing():
                if self.tickets and self._room(self.places.live):
                    self.places.move(place, PlaceState.READY, now)
                    effects += self._seat_waiting(now) + self._departures.outlived(now)
        effects += self._grow(now)
        if self.tickets and not self._hopeful(now):
            effects += self.tickets.deny(Deny(0, "broken", *self._may.shut(now)))
        self._follow()
        return effects

    def adopt(self, policy: Policy, now: float) -> list[Effect]:
        """Scaled by another policy from now on; what is too many for it goes at the scaler's next look."""
        self.policy = self.places.policy = policy
        return self.settle(now)

    def add(self, count: int, now: float, reason: Reason) -> list[Effect]:
        """Start more, within maximum and breaker."""
        effects = self._start(count, now, reason)
        self._follow()
        return effects

    def warm(self, count: int, now: float) -> list[Effect]:
        """Have at least `count` until `floor` is lowered again. Somebody asks on purpose: the breaker is closed."""
        self._may.succeeded()
        self.retired = False
        self.floor = max(self.floor, count)
        self.used_at = now
        return self.settle(now)

    def expire(self, now: float, *, may_drain: bool = True) -> list[Effect]:
        """What is over its time: starts, waiting requests, replicas that were drained and stay, drains to ask again.
        `may_drain`: see Activator."""
        effects: list[Effect] = []
        for place in self.places:
            effects += self._expire_place(place, now, may_drain)
        patient = self.places.live and not self.places.offered
        grace = self.policy.start_limit + START_MARGIN if patient else 0.0
        effects += self.tickets.expire(now, grace)
        return effects + self.settle(now)

    def retire(self, now: float) -> list[Effect]:
        """Its revision is no longer served: who waits moves on, what runs is finished, the replicas leave."""
        self.retired = True
        self.floor = 0
        effects = self.tickets.deny(Deny(0, "moved"))
        return effects + self._empty(now, "retired", "no longer served") + self.settle(now)

    def revive(self, now: float) -> list[Effect]:
        """Its revision is served again."""
        self.retired = False
        for place in self.places.closing():
            self.places.move(place, PlaceState.READY, now)
        return self.settle(now)

    def evict(self, now: float) -> list[Effect]:
        """Make room for another pool. Only when nothing runs and nobody waits."""
        if self.running or self.tickets:
            raise IllegalMove(f"{self.key}: evicted while in use")
        self.evicted = True
        return self._empty(now, "evicted", "evicted for another pool") + self.settle(now)

    @property
    def state(self) -> State:
        """COLD, WAKING, WARM or COOLING."""
        return self._phase.state

    @property
    def wakes(self) -> int:
        """How often it was woken."""
        return self._phase.wakes

    @property
    def idle(self) -> bool:
        """Nothing runs, nobody waits, nothing starts."""
        return not self.running and not self.tickets and not self.floor and not self.starting

    @property
    def starting(self) -> int:
        """Replicas that are not ready yet."""
        return self.places.count(PlaceState.STARTING)

    # --- Inside -----------------------------------------------------------------------------------------------

    def _seat(self, place: Place, now: float) -> None:
        place.running += 1
        self.running += 1
        self.used_at = now
        if self.policy.single_use:
            place.spent = place.going = True
            place.why = Reason("single_use", "its one input is done")
            self.places.move(place, PlaceState.CLOSING, now)

    def _seat_waiting(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self.tickets:
            ticket = next(iter(self.tickets.values()))
            if (place := self.places.choose(now, ticket.avoid)) is None:
                break
            del self.tickets[ticket.id]
            self._seat(place, now)
            effects.append(Grant(ticket.id, place))
        return effects

    def _grow(self, now: float) -> list[Effect]:
        if self.retired:
            return []
        wanted = self.policy.needed(len(self.tickets) + self.places.load(now))
        if self.tickets or self.floor:
            wanted = self.policy.within(max(wanted, self.floor))
        missing = wanted - (self.places.counted_on(now) if self.tickets else self.places.live)
        return self._start(missing, now, self._demand()) if missing > 0 else []

    def _demand(self) -> Reason:
        if self.floor and not self.tickets:
            return Reason("warm", f"{self.floor} asked for")
        return Reason("requests", f"requests: {len(self.tickets)} waiting, {self.running} running")

    def _room(self, count: int) -> bool:
        """There may be more than `count` replicas."""
        return self.policy.max is None or count < max(1, self.policy.max)

    def _start(self, count: int, now: float, reason: Reason) -> list[Effect]:
        effects: list[Effect] = []
        while len(effects) < count and self._room(len(self.places)) and self._may.allowed(now):
            self._may.began(now)
            self.starts += 1
            effects.append(Start(self.places.add_next(now).key, reason, self.tickets.latest))
        return effects

    def _start_failed(self, place: Place, failure: Failure, now: float, *, hope: bool = False) -> list[Effect]:
        """Told to the waiting at once, unless another replica is ready or starting, or room is being made. After one
        that ended without a fault, with its machine or sent away by another router, say, the next is tried."""
        failed = Failed(place.key, failure)
        asked_for = self.floor or (self.tickets and not self.places.live)
        if self._replacing.failed(place.key, failure, now) and not asked_for:
            return [failed]
        self._may.failed(now, failure, hope=hope)
        if hope and failure.code == "no_capacity":
            return [Recheck(self._may.pause(now))]
        if self.places.live or ((failure is CALLED_OFF or failure.lost) and self._may.open(now)):
            return [failed, Recheck(self._may.pause(now))]
        self.floor = 0
        self._may.hold_until = 0.0
        return [failed, *self.tickets.deny(Deny(0, "failed", failure))]

    def _hopeful(self, now: float) -> bool:
        """Is there anything to wait for: a live replica, a start to come, or one on its way out that makes room."""
        return now < self._may.hold_until or self.places.live > 0 or (len(self.places) > 0 and self._may.open(now))

    def _expire_place(self, place: Place, now: float, may_drain: bool) -> list[Effect]:
        what = overdue(place, now, self.policy, self._overstay)
        if what is None or (what == "answer" and not may_drain and not place.hung):
            return []  # out of reach for this router may mean no more than that
        if what == "start":
            limit = f"not ready after {self.policy.start_limit:g} s"
            failure = Failure("startup_timeout", f"It was {limit}.")
            killed = self._departures.kill(place, now, Reason("faulty", limit))
            return killed + self._start_failed(place, failure, now)
        keep = not may_drain and not self.retired
        return self._departures.late(place, now, what, overstay=self._overstay, keep=keep)

    def _empty(self, now: float, kind: Kind, text: str) -> list[Effect]:
        return self._departures.dismiss([place for place in self.places if place.live], now, Reason(kind, text))

    def _go(self, step: Step, now: float) -> list[Effect]:
        reason = Reason("replaced", f"replaced: {step.place.leaving}")
        if step.what == "close":
            return self._departures.close(step.place, now, reason, going=True)
        if step.what == "drain":
            return self._departures.close(step.place, now, reason, idle_for=step.idle_for)
        if not self._room(len(self.places) - 1) or not self._may.allowed(now):
            return []
        # Not told to the breakers: nobody waits for it.
        self.starts += 1
        successor = self.places.add_next(now).key
        self._replacing.began(step.place, successor)
        return [Start(successor, reason)]

    def _follow(self) -> None:
        self._phase.follow(self.places, waiting=bool(self.tickets))
