"""Replicas as a pool counts them, what waits for them, and what a pool asks for.

STARTING ─ready─▶ READY ◀──probe answered──┐
    │               │ └─────strike────▶ STRUCK
    │   closed │ ▲ reopened                │
    │          ▼ │                         │
    │        CLOSING ─drain sent─▶ DRAINING (refused: READY again)
    └──── every state ── process ended ──▶ removed
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from modalnomad.model.replica import Address, Failure, ReplicaKey
from modalnomad.scaling.decide import Reason


class PlaceState(StrEnum):
    """See the diagram above. A move it does not show raises."""

    STARTING = "starting"
    READY = "ready"
    STRUCK = "struck"
    """A connection to it was refused: not offered until a probe is answered."""
    CLOSING = "closing"
    """Takes no more requests; the drain was not sent yet, so it can be reopened."""
    DRAINING = "draining"
    """The drain was sent, or it is being killed."""


_MOVES = {
    PlaceState.STARTING: {PlaceState.READY, PlaceState.DRAINING},
    PlaceState.READY: {PlaceState.STRUCK, PlaceState.CLOSING},
    PlaceState.STRUCK: {PlaceState.READY, PlaceState.CLOSING, PlaceState.DRAINING},
    PlaceState.CLOSING: {PlaceState.READY, PlaceState.DRAINING},
    PlaceState.DRAINING: {PlaceState.READY, PlaceState.CLOSING},
}


class IllegalMove(Exception):
    """A defect of the platform: a state machine was asked for a move its diagram does not show."""


@dataclass(slots=True, eq=False)
class Place:
    """One replica of a pool. Times are seconds of the pool's clock."""

    key: ReplicaKey
    asked_at: float
    state: PlaceState = PlaceState.STARTING
    address: Address | None = None
    ticket: bytes = field(default=b"", repr=False)
    """What it was found to take, when it got ready."""
    running: int = 0
    """Leases out on it."""
    idle_since: float = 0.0
    busy_until: float = 0.0
    """Not offered before: its runner just said Busy."""
    changed_at: float = 0.0
    why: Reason | None = None
    """Why it leaves; only of use while it does."""
    spent: bool = False
    """Single-use, and used."""
    killed: bool = False
    listed: bool = False
    """The engine has shown it."""
    refusals: int = 0
    """How often in a row its runner said Busy."""
    hung: bool = False
    """STRUCK because a request on it ran over its time."""
    removed: bool = False
    leaving: str = ""
    """Why its engine wants it replaced (`model.Replica.leaving`)."""
    going: bool = False
    """It leaves for good: it is not reopened, whoever waits."""
    force_at: float = math.inf
    """From then on its drain holds whatever other routers have running on it: that gets the grace period."""
    forced: bool = False
    """It was asked so."""
    silent: bool = False
    """It did not answer its drain in time: nobody knows whether it ends before it is killed."""

    def move(self, state: PlaceState, now: float) -> None:
        """Raises IllegalMove."""
        if state not in _MOVES[self.state]:
            raise IllegalMove(f"{self.key}: {self.state} → {state}")
        self.state = state
        self.changed_at = now

    @property
    def live(self) -> bool:
        """Takes requests, or will."""
        return self.state in LIVE


LIVE = frozenset({PlaceState.STARTING, PlaceState.READY, PlaceState.STRUCK})


@dataclass(frozen=True, slots=True)
class Ticket:
    """One waiting request. `deadline`: it does not wait longer for a free place once replicas are alive."""

    id: int
    deadline: float
    avoid: frozenset[ReplicaKey] = field(default=frozenset())
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """The ticket's request has a place; the lease is already counted."""

    ticket: int
    place: Place


WhyNot = Literal["queue_full", "queue_timeout", "failed", "broken", "moved", "draining"]


@dataclass(frozen=True, slots=True)
class Deny:
    """The ticket's request gets no place. failed: the start it waited for did; broken: nothing is started for now."""

    ticket: int
    why: WhyNot
    failure: Failure | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Have the engine start this replica."""

    key: ReplicaKey
    reason: Reason
    request_id: str = ""
    """Of the request it is started for; empty: for none."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The replica takes requests now."""

    place: Place


@dataclass(frozen=True, slots=True)
class Ended:
    """The replica is gone; `failure`: it died."""

    place: Place
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A start failed, and no room is being made for it."""

    key: ReplicaKey
    failure: Failure


@dataclass(frozen=True, slots=True)
class Drain:
    """Ask the replica to drain; just before sending, `Pool.drain_sent` says whether that still holds. `force`: whatever
    runs on it; it ends after the last of them."""

    key: ReplicaKey
    idle_for: float
    reason: Reason
    force: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the replica whether it is still there."""

    place: Place


@dataclass(frozen=True, slots=True)
class Kill:
    """Have the engine end it at once."""

    key: ReplicaKey
    reason: Reason


@dataclass(frozen=True, slots=True)
class Recheck:
    """Call `Pool.settle` at this time."""

    at: float


Effect = Grant | Deny | Start | Opened | Ended | Failed | Drain | Probe | Kill | Recheck
