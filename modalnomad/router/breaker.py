"""Failed starts in a row open a breaker: while it is open nothing is started, then one trial at a time.

CLOSED ─k failures─▶ OPEN ─time passes─▶ TRIAL ─fails─▶ OPEN, twice as long
   ▲                                       │
   └───────────── a start succeeds ────────┘
"""

from __future__ import annotations

from modalnomad.model.replica import Failure


class Breaker:
    """`threshold` failures in a row open it for `backoff` seconds, doubled by each failed trial up to `longest`; not by
    those for which a server was away: once it is back, nobody is to wait."""

    def __init__(self, threshold: int, backoff: float, longest: float) -> None:
        self._threshold = threshold
        self._backoff = backoff
        self._longest = longest
        self._failures = 0
        self._opened = 0
        self._open_until: float | None = None
        self._trial = False
        self.last: Failure | None = None
        """Why the last start failed; None after a success."""

    def allowed(self, now: float) -> int | None:
        """How many more starts may begin now; None: any number."""
        if self._open_until is None:
            return None
        return 0 if self._trial or now < self._open_until else 1

    def began(self, now: float) -> None:
        """A start was asked for."""
        if self._open_until is not None and now >= self._open_until:
            self._trial = True

    def succeeded(self) -> None:
        """A replica became ready: everything is forgotten."""
        self._failures = self._opened = 0
        self._open_until = self.last = None
        self._trial = False

    def failed(self, now: float, failure: Failure) -> None:
        """A start failed. Late failures of starts begun before it opened do not lengthen it."""
        self.last = failure
        if self._open_until is None:
            self._failures += 1
            if self._failures < self._threshold:
                return
        elif not self._trial:
            return
        self._trial = False
        if failure.away:
            self._open_until = now + self._backoff
            return
        self._opened += 1
        self._open_until = now + min(self._longest, self._backoff * 2.0 ** min(self._opened - 1, 60))

    def abandoned(self) -> None:
        """The trial ended without telling anything (it was called off): the next may begin."""
        self._trial = False

    def retry_after(self, now: float) -> float:
        """Seconds until a start may begin; 0: now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)


CALLED_OFF = Failure("start_failed", "It ended before it was ready.")
RETRY_PAUSE = 0.25
"""Seconds between a failed start and the next one, while others are alive or on their way out; between the loss of a
machine and the first start for it."""


class Starts:
    """May a pool start a replica now? `faults` counts starts that failed by the program's fault, `room` those for which
    there was none. One that went with its machine is neither's."""

    def __init__(self, faults: Breaker, room: Breaker) -> None:
        self._faults = faults
        self._room = room
        self.hold_until = 0.0
        """A pause after a failed start that somebody still waits behind."""

    def allowed(self, now: float) -> bool:
        """One more."""
        return now >= self.hold_until and self.open(now)

    def open(self, now: float) -> bool:
        """No breaker forbids it; a pause may."""
        return self._faults.allowed(now) != 0 and self._room.allowed(now) != 0

    def began(self, now: float) -> None:
        """A start was asked for."""
        self._faults.began(now)
        self._room.began(now)

    def succeeded(self) -> None:
        """A replica is ready, or somebody asks on purpose: everything is forgotten."""
        self._faults.succeeded()
        self._room.succeeded()
        self.hold_until = 0.0

    def abandoned(self) -> None:
        """A start was called off."""
        self._faults.abandoned()
        self._room.abandoned()

    def failed(self, now: float, failure: Failure, *, hope: bool) -> None:
        """`hope`: there was no room, but some is being made."""
        counted = self._room if failure.code in ("no_capacity", "unplaceable") else self._faults
        if not (hope and failure.code == "no_capacity") and not failure.lost:
            counted.failed(now, failure)
        self.abandoned()

    def pause(self, now: float) -> float:
        """Nothing is started before the time returned."""
        self.hold_until = now + RETRY_PAUSE
        return self.hold_until

    def shut(self, now: float) -> tuple[Failure | None, float]:
        """Why nothing may be started, and the seconds until it may."""
        breaker = max(self._faults, self._room, key=lambda breaker: breaker.retry_after(now))
        return breaker.last, max(breaker.retry_after(now), 1.0)
