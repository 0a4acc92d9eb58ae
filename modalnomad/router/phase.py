"""What a pool as a whole is doing: it follows from its places, and only in the ways of this diagram. Pure.

COLD ─request─▶ WAKING ─ready─▶ WARM ─the last one closes─▶ COOLING ─gone─▶ COLD
  ▲               │ ▲ ▲          │ ▲                          │  │
  ├───failed──────┘ │ └──lost────┤ └──reopened, drain refused─┘  │
  ├───────────────lost───────────┘                               │
  │                 └───────request (the next replica)───────────┘
  └ (WAKING ─failed while another is leaving─▶ COOLING)
"""

from __future__ import annotations

from enum import StrEnum

from modalnomad.router.places import IllegalMove
from modalnomad.router.roster import Roster


class State(StrEnum):
    """See the diagram above. A move it does not show raises IllegalMove."""

    COLD = "cold"
    WAKING = "waking"
    WARM = "warm"
    COOLING = "cooling"


_MOVES = {
    State.COLD: {State.WAKING},
    State.WAKING: {State.WARM, State.COLD, State.COOLING},
    State.WARM: {State.WAKING, State.COOLING, State.COLD},
    State.COOLING: {State.WARM, State.WAKING, State.COLD},
}


class Phase:
    """The state, and how often it became WAKING."""

    def __init__(self) -> None:
        self.state = State.COLD
        self.wakes = 0

    def follow(self, places: Roster, *, waiting: bool) -> None:
        """Take the state the places show."""
        state = _shown(places, waiting=waiting)
        if state is self.state:
            return
        if state not in _MOVES[self.state]:
            raise IllegalMove(f"{self.state} → {state}")
        self.wakes += state is State.WAKING
        self.state = state


def _shown(places: Roster, *, waiting: bool) -> State:
    if places.offered:
        return State.WARM
    if places.live:
        return State.WAKING
    if len(places):
        return State.COOLING
    return State.WAKING if waiting else State.COLD
