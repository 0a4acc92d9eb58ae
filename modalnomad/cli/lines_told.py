"""What replicas write, told as it comes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Protocol

from modalnomad.model.replica import LogLine
from modalnomad.ports.engine import Engine


class LineView(Protocol):
    """Where it is told."""

    async def room(self) -> None:
        """Return when there is room for one more of many lines."""

    def log(self, line: LogLine, number: str) -> None:
        """A replica wrote a line. `number`: its place in its pool."""


async def tell_lines(engine: Engine, view: LineView) -> None:
    """All of them, until cancelled."""
    async with aclosing(engine.logs(None, follow=True)) as lines:  # type: ignore[type-var]
        async for line in lines:
            await view.room()
            view.log(line, line.replica_name)


async def told_all() -> None:
    """What the last replicas wrote is in the engine by now; its followers run before the next line of ours does."""
    for _ in range(10):
        await asyncio.sleep(0)
