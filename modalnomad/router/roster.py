"""The replicas of one pool: which are offered, which is chosen next, which number and epoch the next one gets. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from modalnomad.model.ids import LAST_EPOCH
from modalnomad.model.replica import Address, PoolKey, ReplicaKey
from modalnomad.router.places import Place, PlaceState
from modalnomad.scaling.decide import Kind, Observed, Policy, Seen

STRIKE_PATIENCE = 0.5
"""Seconds a replica may be out of reach before another is started in its place."""


class Roster:
    """Places by key. Only `move` and `remove` change what is offered. `policy` may be replaced."""

    def __init__(self, pool: PoolKey, policy: Policy) -> None:
        self._pool = pool
        self.policy = policy
        self._places: dict[ReplicaKey, Place] = {}
        self._epochs: dict[int, int] = {}
        self.changes = 0
        """How often a replica came, went or changed its state."""
        self.offered: list[Place] = []
        """READY ones, lowest number first, those to be replaced last."""
        self.doubled = False
        """Two of them have one number."""

    def __iter__(self) -> Iterator[Place]:
        return iter(tuple(self._places.values()))

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: ReplicaKey) -> Place | None:
        """None: never known, or ended."""
        return self._places.get(key)

    def hear_of(self, key: ReplicaKey, address: Address | None) -> Place | None:
        """The engine lists it, alive or not: its epoch is used. Returns its place, if it has one."""
        self._epochs[key.number] = max(key.epoch, self._epochs.get(key.number, 0))
        place = self._places.get(key)
        if place is not None and place.address is None:
            place.address = address
        return place

    def take_in(self, key: ReplicaKey, address: Address | None, now: float) -> Place:
        """One that lives; a new one is starting, as far as is known."""
        place = self.hear_of(key, address)
        if place is None:
            place = self._places[key] = Place(key, asked_at=now, changed_at=now, address=address)
            self.changes += 1
        return place

    def mark(self, place: Place, leaving: str) -> None:
        """Its engine wants it replaced, or (empty) not any more."""
        if place.leaving != leaving:
            place.leaving = leaving
            self._refresh()

    def add_next(self, now: float) -> Place:
        """The lowest free number that has epochs left, its epoch one above the highest ever heard of."""
        taken = {key.number for key in self._places}
        taken |= {number for number, epoch in self._epochs.items() if epoch >= LAST_EPOCH}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        return self.take_in(ReplicaKey(self._pool, number, self._epochs.get(number, 0) + 1), None, now)

    def remove(self, key: ReplicaKey) -> Place | None:
        """Its process is gone."""
        place = self._places.pop(key, None)
        if place is not None:
            place.removed = True
            self._refresh()
        return place

    def move(self, place: Place, state: PlaceState, now: float) -> None:
        """Raises IllegalMove."""
        place.move(state, now)
        self._refresh()

    def choose(self, now: float, avoid: frozenset[ReplicaKey]) -> Place | None:
        """The lowest-numbered below its target, else the least loaded below its maximum; avoided ones last."""
        best: Place | None = None
        for place in self.offered:
            if place.busy_until > now or place.running >= self.policy.max_inputs:
                continue
            if place.running < self.policy.target and place.key not in avoid:
                return place
            if best is None or (place.key in avoid, place.running) < (best.key in avoid, best.running):
                best = place
        return best

    def closing(self) -> list[Place]:
        """Those that can be reopened, lowest number first."""
        closing = (p for p in self._places.values() if p.state is PlaceState.CLOSING and not p.going)
        return sorted(closing, key=lambda place: place.key.number)

    def leaving_for(self, kind: Kind) -> bool:
        """One is on its way out for this reason."""
        out = (PlaceState.CLOSING, PlaceState.DRAINING)
        return any(p.why is not None and p.why.kind == kind for p in self._places.values() if p.state in out)

    @property
    def live(self) -> int:
        """How many take requests, or will."""
        return sum(place.live for place in self._places.values())

    def counted_on(self, now: float) -> int:
        """The live ones, without those that have been out of reach for more than a moment."""
        lost = (p.state is PlaceState.STRUCK and now - p.changed_at >= STRIKE_PATIENCE for p in self._places.values())
        return self.live - sum(lost)

    def count(self, state: PlaceState) -> int:
        """How many are in this state."""
        return sum(place.state is state for place in self._places.values())

    def load(self, now: float) -> int:
        """Requests on live replicas; one that just said Busy counts as holding its target at least."""
        return sum(
            max(place.running, self.policy.target) if place.busy_until > now else place.running
            for place in self._places.values()
            if place.live
        )

    def observed(self, waiting: int) -> Observed:
        """For `scaling.decide`."""
        return Observed(tuple(map(_seen, self._places.values())), waiting)

    def _refresh(self) -> None:
        self.changes += 1
        ready = (place for place in self._places.values() if place.state is PlaceState.READY)
        found = sorted(ready, key=lambda place: (place.leaving != "", place.key.number, place.key.epoch))
        self.offered = found
        self.doubled = len({place.key.number for place in found}) < len(found)


def _seen(place: Place) -> Seen:
    if place.state is PlaceState.STARTING:
        return Seen(place.key.number, "starting")
    state: Literal["ready", "leaving"] = "ready" if place.live else "leaving"
    return Seen(place.key.number, state, place.running, place.idle_since, outgoing=place.leaving != "")
