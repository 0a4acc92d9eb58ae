"""Replicas that their engine wants replaced (a node is drained, a secret has a newer value): one at a time per pool.

Until then they count as what they are, capacity: a drained node with ten replicas of a pool starts one, not ten. They
are only chosen last, so that they run dry first. One that is idle and not needed just goes. Else another one is
started, beside the maximum if it must be, and when that is ready the old one is closed. Where there is no room for
another one, the old one goes when it runs dry. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from modalnomad.model.replica import Failure, ReplicaKey
from modalnomad.router.places import Place, PlaceState
from modalnomad.router.roster import Roster

QUIET: Final = 2.0
"""Seconds without a request after which a replica counts as idle here."""
PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
"""Seconds after a start that failed; doubled from the first to the longest."""

What = Literal["another", "close", "drain"]


@dataclass(frozen=True, slots=True)
class Step:
    """`another`: start one more, for this one; `close`: its successor is ready, it goes; `drain`: it goes if it is idle
    (`idle_for` seconds) for every router."""

    what: What
    place: Place
    idle_for: float = 0.0


class Replacing:
    """Between two steps: who is replaced by whom, and what came of it."""

    def __init__(self, places: Roster) -> None:
        self._places = places
        self._victim: ReplicaKey | None = None
        self._successor: ReplicaKey | None = None
        self.dry: Place | None = None
        """There is no room for its successor: it goes when it runs dry."""
        self._failures = 0
        self._not_before = 0.0

    def step(self, now: float, wanted: int, *, waiting: bool, over: bool) -> Step | None:
        """What is next, if anything. `wanted`: replicas the pool needs as it is used now; `over`: more are ready than
        there may be."""
        ready = self._places.offered
        leaving = [place for place in ready if place.leaving]
        if not any(place.leaving and place.live for place in self._places):
            self._successor = self.dry = None
            return None
        if not leaving or self._places.leaving_for("replaced"):
            return None
        if self._successor is not None:
            successor = self._places.get(self._successor)
            if successor is not None and successor.state in (PlaceState.STARTING, PlaceState.STRUCK):
                return None
            self._successor, self._failures, self.dry = None, 0, None
            if successor is not None and successor.state is PlaceState.READY:
                victim = next((place for place in leaving if place.key == self._victim), leaving[-1])
                return Step("close", victim)
        least_busy = min(leaving, key=lambda place: (place.running, -place.key.number))
        if over:
            return Step("close", least_busy)
        for place in leaving:
            idle = not waiting and not place.running and now - place.idle_since >= QUIET
            if idle and len(ready) > wanted:
                return Step("drain", place, QUIET)
        if now < self._not_before:
            return None
        return Step("another", least_busy)

    def began(self, victim: Place, successor: ReplicaKey) -> None:
        """It was started."""
        self._victim, self._successor = victim.key, successor

    def failed(self, key: ReplicaKey, failure: Failure, now: float) -> bool:
        """A start came to nothing. True: it was the successor's; the old one stays, and is replaced later."""
        if key != self._successor:
            return False
        victim = self._places.get(self._victim) if self._victim is not None else None
        self._successor = None
        if victim is not None and failure.code in ("no_capacity", "unplaceable"):
            self.dry = victim
        self._not_before = now + min(LONGEST_PAUSE, PAUSE * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return True
