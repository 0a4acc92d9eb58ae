"""What a replica's place has been in for too long. Pure."""

from __future__ import annotations

from typing import Literal

from modalnomad.router.breaker import RETRY_PAUSE
from modalnomad.router.places import Place, PlaceState
from modalnomad.scaling.decide import Policy

START_MARGIN = 1.0
"""Seconds past the start limit: the runner keeps it too, and its own words are better than ours."""
STRIKE_LIMIT = 10.0
"""Seconds an idle replica may be out of reach before it is ended."""
HUNG_LIMIT = 3.0
"""The same for one that had its function's whole timeout before."""

Overdue = Literal["start", "answer", "end", "drain"]
"""It should be ready; have answered; have ended; be asked to drain once more."""


def overdue(place: Place, now: float, policy: Policy, overstay: float) -> Overdue | None:
    """None: all in time. `overstay`: seconds a drained replica may take to end."""
    since = now - place.changed_at
    if place.state is PlaceState.STARTING and since >= policy.start_limit + START_MARGIN:
        return "start"
    if place.state is PlaceState.STRUCK and since >= (HUNG_LIMIT if place.hung else STRIKE_LIMIT) and not place.running:
        return "answer"
    if place.state is PlaceState.DRAINING and not place.killed:
        # What other routers had sent there before it was forced may take its time.
        return "end" if since >= overstay + (policy.request_limit if place.forced else 0.0) else None
    if place.state is PlaceState.CLOSING and since >= RETRY_PAUSE and not place.running:
        return "drain"
    return None
