"""Requests per second: a token bucket for each environment, and one for each token with a rate of its own.

Each bucket is one number, the time at which it will be full again (the generic cell rate algorithm): a request moves it
ahead by 1/rate and is refused when that would take it more than the burst ahead of now.
"""

from __future__ import annotations

from collections import OrderedDict

from modalnomad.router.auth import Caller
from modalnomad.router.replies import Reply
from modalnomad.router.table import Match

_ROUNDING = 1e-9
"""Seconds: a thousand additions of 1/rate must not cost the last request of a burst."""


class Limits:
    """`rate`: requests per second and environment, 0: no limit. `burst`: seconds of it that may be spent at once; one
    request always may. At most `capacity` buckets are kept: those that are full again go first, then the one that was
    used least recently."""

    def __init__(self, rate: float, burst: float, *, capacity: int = 10_000) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def admit(self, match: Match, caller: Caller, now: float) -> None:
        """Count one request. Raises Reply 429 `rate_limited` with the seconds until one more would be let in."""
        if caller.rate is None:
            rate, name = self._rate, ("environment", match.route.environment)
        else:
            rate, name = caller.rate, ("token", caller.token_id or "")
        if rate <= 0:
            return
        cost = 1.0 / rate
        full_at = max(self._full_at.get(name, now), now) + cost
        excess = full_at - now - max(self._burst, cost)
        if excess > _ROUNDING:
            raise Reply(
                429,
                "rate_limited",
                f"More than {rate:g} requests per second for this {name[0]}.",
                retry_after=excess,
            )
        self._full_at[name] = full_at
        self._full_at.move_to_end(name)
        if len(self._full_at) > self._capacity:
            self._forget(now)

    def _forget(self, now: float) -> None:
        for name in [name for name, full_at in self._full_at.items() if full_at <= now]:
            del self._full_at[name]
        while len(self._full_at) > self._capacity:
            self._full_at.popitem(last=False)

    def __len__(self) -> int:
        """Buckets kept."""
        return len(self._full_at)
