"""What replicas write, told as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Protocol

from modalnomad.model.replica import LogLine
from modalnomad.ports.engine import Engine

WAIT = 0.1
"""Seconds of one wait for room at the end."""
WAITS = 20
"""Of them a reader who stands still is given: counted and not timed, so that a machine that stands still takes none."""
ROUNDS = 200
"""Of about a thousand lines each: one that is still writing is not told for ever."""


class LineView(Protocol):
    """Where it is told."""

    async def room(self) -> None:
        """Return when there is room for one more of many lines."""

    def log(self, line: LogLine, number: str) -> None:
        """A replica wrote a line. `number`: its place in its pool."""


class LinesTold:
    """The lines of all replicas. `follow` until cancelled; `caught_up` before that, or their last words are lost."""

    def __init__(self, engine: Engine, view: LineView) -> None:
        self._engine = engine
        self._view = view
        self._taken = 0
        """Lines that came so far."""

    async def follow(self, wanted: Callable[[LogLine], bool] = lambda line: True) -> None:
        """All that are wanted."""
        async with aclosing(self._engine.logs(None, follow=True)) as lines:  # type: ignore[type-var]
            async for line in lines:
                self._taken += 1
                if wanted(line):
                    await self._view.room()
                    self.tell(line)

    def tell(self, line: LogLine) -> None:
        """One line, at once."""
        self._view.log(line, line.replica_name)

    async def caught_up(self) -> None:
        """Return when all that the engine has is told, or whoever reads stands still for long."""
        seen, waits = -1, WAITS
        for _ in range(ROUNDS):
            if seen == self._taken or not waits:
                return
            seen = self._taken
            try:
                async with asyncio.timeout(WAIT):
                    await self._view.room()
            except TimeoutError:
                seen = -1
                waits -= 1
            await told_all()


async def told_all() -> None:
    """What was set last is known to its followers, and of many lines some are told: followers run before the next line
    of ours does."""
    for _ in range(10):
        await asyncio.sleep(0)
