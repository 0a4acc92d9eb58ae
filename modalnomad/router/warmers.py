"""Who waits until a pool has so many replicas ready (`Activator.warm`), and the timers by which pools look again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from modalnomad.model.replica import Failure
from modalnomad.router.pool import Pool

_SLACK = 0.002
"""Seconds: an event loop's clock may be a millisecond behind ours."""


@dataclass(slots=True, eq=False)
class _Warmer:
    """Somebody waits in `warm`."""

    pool: Pool
    count: int
    done: asyncio.Future[Failure | None]

    def finish(self, failure: Failure | None) -> None:
        """None: enough are ready."""
        if not self.done.done():
            self.done.set_result(failure)


class Warmers:
    """A pool's floor is what the most demanding of those who wait for it wants."""

    def __init__(self) -> None:
        self._warmers: list[_Warmer] = []

    async def wait(self, pool: Pool, count: int, begin: Callable[[], None]) -> Failure | None:
        """Until `count` replicas are ready. `begin` asks the pool for them. Returns why that failed, or None."""
        warmer = _Warmer(pool, count, asyncio.get_running_loop().create_future())
        self._warmers.append(warmer)
        try:
            begin()
            self.check(pool)
            return await warmer.done
        finally:
            self._warmers.remove(warmer)
            pool.floor = max((other.count for other in self._warmers if other.pool is pool), default=0)

    def check(self, pool: Pool) -> None:
        """More of its replicas are ready."""
        for warmer in self._warmers:
            if warmer.pool is pool and len(pool.places.offered) >= warmer.count:
                warmer.finish(None)

    def fail(self, pool: Pool, failure: Failure) -> None:
        """A start failed."""
        for warmer in self._warmers:
            if warmer.pool is pool:
                warmer.finish(failure)

    def close(self, failure: Failure) -> None:
        """Nobody waits any longer."""
        for warmer in self._warmers:
            warmer.finish(failure)


class Rechecks:
    """Calls of `look` at times that pools asked for."""

    def __init__(self, look: Callable[[Pool], None]) -> None:
        self._look = look
        self._handles: set[asyncio.TimerHandle] = set()

    def after(self, delay: float, pool: Pool) -> None:
        """Seconds."""

        def due() -> None:
            self._handles.discard(handle)
            self._look(pool)

        handle = asyncio.get_running_loop().call_later(max(0.0, delay) + _SLACK, due)
        self._handles.add(handle)

    def close(self) -> None:
        """None of them comes any more."""
        for handle in self._handles:
            handle.cancel()
        self._handles.clear()
