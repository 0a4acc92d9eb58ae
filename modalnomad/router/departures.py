"""How the replicas of one pool go: closed, asked to drain, ended at once. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from modalnomad.model.replica import ReplicaKey
from modalnomad.router.breaker import Starts
from modalnomad.router.overdue import Overdue
from modalnomad.router.places import Drain, Effect, Kill, Place, PlaceState
from modalnomad.router.roster import Roster
from modalnomad.scaling.decide import Reason

FORCE_AFTER: Final = 60.0
"""Seconds for which one that goes for good is only asked: requests of other routers, which do not choose it any more
while they have others, are finished as a rule. Forced, what still runs gets the runner's grace period."""
_LEFT_OVER = Reason("retired", "no longer served")


class Departures:
    """`starts` hears of those called off."""

    def __init__(self, places: Roster, starts: Starts) -> None:
        self._places = places
        self._starts = starts

    def close(
        self, place: Place, now: float, reason: Reason, *, idle_for: float = 0.0, going: bool = False
    ) -> list[Effect]:
        """It takes no more requests, and is asked to drain when it holds none. `going`: see Place."""
        self._places.move(place, PlaceState.CLOSING, now)
        place.why = reason
        place.going |= going
        place.force_at = now + FORCE_AFTER if place.going else math.inf
        return [] if place.running else [Drain(place.key, idle_for, reason)]

    def again(self, place: Place, now: float) -> Drain:
        """Ask it to drain, once it holds nothing any more, or once more."""
        place.forced |= now >= place.force_at
        return Drain(place.key, 0.0, place.why or _LEFT_OVER, force=place.forced)

    def kill(self, place: Place, now: float, reason: Reason) -> list[Effect]:
        """At once."""
        self._places.move(place, PlaceState.DRAINING, now)
        place.killed = True
        return [Kill(place.key, reason)]

    def dismiss(self, places: Iterable[Place], now: float, reason: Reason) -> list[Effect]:
        """Those still starting end at once, the others after the last request they hold."""
        effects: list[Effect] = []
        for place in places:
            if place.state is PlaceState.STARTING:
                self._starts.abandoned()
                effects += self.kill(place, now, reason)
            else:
                effects += self.close(place, now, reason)
        return effects

    def outlived(self, now: float) -> list[Effect]:
        """Of two ready replicas with one number the later start stays: two routers that did not know of each other's
        start asked for both (design §10)."""
        if not self._places.doubled:
            return []
        latest: dict[int, int] = {}
        for place in self._places.offered:
            latest[place.key.number] = max(place.key.epoch, latest.get(place.key.number, 0))
        effects: list[Effect] = []
        for place in self._places.offered:
            later = latest[place.key.number]
            if place.key.epoch < later:
                reason = Reason("doubled", f"{place.key.number}.{later} is alive, a later start of it")
                effects += self.close(place, now, reason, going=True)
        return effects

    def sent(self, key: ReplicaKey, now: float) -> Place | None:
        """The drain is about to be sent. None: it no longer holds (reopened, in use, gone)."""
        place = self._places.get(key)
        if place is None or place.state is not PlaceState.CLOSING or place.running:
            return None
        self._places.move(place, PlaceState.DRAINING, now)
        return place

    def refused(self, key: ReplicaKey, now: float, idle_for: float, *, retired: bool) -> Place | None:
        """Something runs on it, or ran `idle_for` seconds ago, by another router: it takes requests again, or is asked
        again. None: this is not news of one that was asked."""
        place = self._places.get(key)
        if place is None or place.state is not PlaceState.DRAINING or place.killed:
            return None
        if retired or place.going:
            self._places.move(place, PlaceState.CLOSING, now)
        else:
            self._places.move(place, PlaceState.READY, now)
            place.idle_since = now - idle_for
        return place

    def late(self, place: Place, now: float, what: Overdue, *, overstay: float, keep: bool) -> list[Effect]:
        """What is over its time. `keep`: this router may not send it away (any more), so it takes requests again."""
        match what:
            case "answer":
                since = now - place.changed_at
                return self.kill(place, now, Reason("faulty", f"no answer from it for {since:.0f} s"))
            case "end":
                place.killed = True
                return [Kill(place.key, Reason("faulty", f"still there {overstay:g} s after it was drained"))]
            case "drain" if keep and not place.going:
                self._places.move(place, PlaceState.READY, now)
            case "drain":
                place.changed_at = now
                return [self.again(place, now)]
        return []
