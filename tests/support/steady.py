"""An event loop for tests of short times, on machines that stand still for seconds.

`STEADY_LOOP = True` in a module of integration tests: they run on it.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time

STEP = 0.02
"""Seconds that one step of work may count."""
_monotonic, _time = time.monotonic, time.time


class SteadyLoop(asyncio.SelectorEventLoop):
    """Its clock counts what it waits, and of what it does a moment at each step. A machine that stops the process
    between a request and its answer takes no time by it, so nothing is late when both sides run on this loop.

    While it runs, `time.monotonic` and `time.time` show its time.
    """

    def __init__(self) -> None:
        self._now = self._seen = _monotonic()
        self._most = STEP
        self._wall = _time() - self._now
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Seconds."""
        real = _monotonic()
        self._now += min(real - self._seen, self._most)
        self._seen = real
        return self._now

    def skip(self, seconds: float) -> None:
        """As if the process had been stopped for so long."""
        self._now += seconds

    def run_forever(self) -> None:
        """As ever."""
        time.monotonic, time.time = self.time, lambda: self._wall + self.time()
        try:
            super().run_forever()
        finally:
            time.monotonic, time.time = _monotonic, _time

    def waits(self, timeout: float | None) -> None:
        """It waits up to so long: all of this counts."""
        self.time()
        self._most = math.inf if timeout is None else max(timeout, 0.0) + STEP

    def works(self) -> None:
        """It waits no more."""
        self.time()
        self._most = STEP


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: SteadyLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.waits(timeout)
        try:
            return super().select(timeout)
        finally:
            self._loop.works()
