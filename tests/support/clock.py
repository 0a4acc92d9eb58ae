"""Time that moves when the test says so."""

from __future__ import annotations


class ManualClock:
    """Call it for the time; `advance` moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """The new time."""
        assert seconds >= 0
        self.now += seconds
        return self.now
