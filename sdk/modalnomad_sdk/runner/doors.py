"""Who may come in: `max_inputs`, drain, and how long nobody was here. Used from the event loop only."""

from __future__ import annotations

import time
from collections.abc import Callable


class Doors:
    """The replica's places for requests.

    Ready once `open` was called; draining for good once `drain` or `shut` was. A decision and its effect happen in one
    call, so no request slips in between (the loop runs one callback at a time).
    """

    def __init__(self, max_inputs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_inputs = max_inputs
        self.running = 0
        self.stuck = 0
        """Of those that run, how many were told to end and did not."""
        self.draining = False
        self.on_change: Callable[[], None] = lambda: None
        """Called when draining begins and when a request ends."""
        self._clock = clock
        self._last_end = clock()
        self._last_contact = clock()

    def open(self) -> None:
        """Ready: idle times count from here."""
        self._last_end = self._last_contact = self._clock()

    def enter(self) -> bool:
        """A request takes a place. False: none is free, or no more are let in."""
        if self.draining or self.running >= self.max_inputs:
            return False
        self.running += 1
        return True

    def leave(self) -> None:
        """Its last byte has gone."""
        self.running -= 1
        self._last_end = self._last_contact = self._clock()
        self.on_change()

    def strand(self) -> None:
        """A request goes on although it was told to end: it keeps its place for ever, so no more are let in."""
        self.stuck += 1
        self.shut()
        self.on_change()

    def unstrand(self) -> None:
        """It ended after all."""
        self.stuck -= 1

    def contact(self) -> None:
        """Somebody with the right ticket asked for anything."""
        self._last_contact = self._clock()

    def idle_for(self) -> float:
        """Seconds since the last request ended; 0 while one runs."""
        return 0.0 if self.running else self._clock() - self._last_end

    def forgotten_for(self) -> float:
        """Seconds since anybody asked for anything."""
        return 0.0 if self.running else self._clock() - self._last_contact

    def drain(self, idle_for: float) -> bool:
        """No more requests, unless something runs or ran less than `idle_for` seconds ago. Once draining: True."""
        if not self.draining and (self.running or self.idle_for() < idle_for):
            return False
        self.shut()
        return True

    def shut(self) -> None:
        """No more requests, whatever runs."""
        if not self.draining:
            self.draining = True
            self.on_change()
