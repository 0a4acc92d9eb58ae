"""Failed starts in a row open a breaker: while it is open nothing is started, then one trial at a time.

CLOSED ─k failures─▶ OPEN ─time passes─▶ TRIAL ─fails─▶ OPEN, twice as long
   ▲                                       │
   └───────────── a start succeeds ────────┘
"""

from __future__ import annotations

from modalnomad.model.replica import Failure


class Breaker:
    """`threshold` failures in a row open it for `backoff` seconds, doubled by each failed trial up to `longest`."""

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
        self._opened += 1
        self._open_until = now + min(self._longest, self._backoff * 2.0 ** min(self._opened - 1, 60))

    def abandoned(self) -> None:
        """The trial ended without telling anything (it was called off): the next may begin."""
        self._trial = False

    def retry_after(self, now: float) -> float:
        """Seconds until a start may begin; 0: now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)
