"""How fast the output of replicas is read: a replica that floods is held up by its own full pipe, and by nothing else.

Each replica has a burst of its own. Those that have used it up share one rate, so that any number of them takes no more
of the event loop and of the disk than one does, and the others are read as if there were none.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from modalnomad.kit.clock import Clock, monotonic

LINE_COST: Final = 150
"""Bytes a line takes beside its text, on disk."""
RATE: Final = 2 * 1024 * 1024
"""Bytes per second that all flooding replicas together may write for long."""
BURST: Final = 16 * 1024 * 1024
"""Bytes that each replica may write at once."""
WORK_SHARE: Final = 4.0
"""After a piece of work, reading pauses this many times as long as it took, for each stream that floods."""
WORK_FREE: Final = 0.0005
"""Seconds of work that call for no pause."""
FLOODING_FOR: Final = 1.0
"""Seconds after its last pause that a replica counts as flooding."""


class Paces:
    """All replicas of an engine. Not more than a dictionary of who floods."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self.clock = clock
        self._flooding: dict[Hashable, float] = {}

    def flooding(self, now: float) -> int:
        """How many do, one at least."""
        if len(self._flooding) > 1:
            self._flooding = {who: until for who, until in self._flooding.items() if until > now}
        return max(1, len(self._flooding))

    def floods(self, who: Hashable, until: float) -> None:
        """It is held up until then."""
        self._flooding[who] = until + FLOODING_FOR

    def forget(self, who: Hashable) -> None:
        """It ended."""
        self._flooding.pop(who, None)


class Pace:
    """Of one replica, its streams together."""

    def __init__(self, paces: Paces) -> None:
        self._paces = paces
        self._debt = 0.0
        self._at = paces.clock()

    def pause(self, data: bytes, began: float) -> float:
        """Seconds to wait before more is read, after `data` was read and worked up since `began`."""
        now = self._paces.clock()
        share = self._paces.flooding(now)
        rate = RATE / share
        self._debt = max(0.0, self._debt - (now - self._at) * rate) + len(data) + LINE_COST * data.count(b"\n")
        self._at = now
        worked = now - began
        pause = max((self._debt - BURST) / rate, worked * WORK_SHARE * share if worked > WORK_FREE else 0.0)
        if pause > 0:
            self._paces.floods(self, now + pause)
        return max(0.0, pause)

    def end(self) -> None:
        """No more is read."""
        self._paces.forget(self)
