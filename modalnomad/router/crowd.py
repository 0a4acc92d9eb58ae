"""What a router does with more clients than it may have files open: it turns away those it has no room for, so that it
can still open what it needs to answer the others and to start replicas."""

from __future__ import annotations

import logging
from typing import Final

from modalnomad.kit.clock import Clock
from modalnomad.kit.open_files import limit
from modalnomad.router.replies import Answer

logger = logging.getLogger("modalnomad.router")

SHARE: Final = 8
"""One of so many is kept for replicas: a connection for each request, pipes, sockets, logs."""
LOOK: Final = 1.0
"""Seconds for which the limit is believed to be what it was."""
TELL: Final = 60.0
"""Seconds between two words about it."""
FULL: Final = Answer(
    503, "too_many_connections", "This router has as many connections as it can.", retry_after=1, close=True
)


class Crowd:
    """The system gives the lowest free number to each file that is opened, so the number tells how many are open."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._most = 0
        self._looked = self._told = float("-inf")
        self._refused = 0

    def turns_away(self, descriptor: int) -> bool:
        """Is this new connection one too many?"""
        now = self._clock()
        if now - self._looked >= LOOK:
            self._looked, allowed = now, limit()
            self._most = allowed - allowed // SHARE
        if descriptor < self._most:
            return False
        self._refused += 1
        if now - self._told >= TELL:
            logger.warning(
                "as many files are open as this process may have, but for those kept for replicas: %d connections were "
                "turned away with 503. Raise the limit (ulimit -n, LimitNOFILE= in a unit), now %d",
                self._refused,
                limit(),
            )
            self._told, self._refused = now, 0
        return True
