"""Requests per second: a token bucket for each environment, and one for each token and each endpoint with a
rate of its own.

Each bucket is one number, the time at which it will be full again (the generic cell rate algorithm): a request moves it
ahead by 1/rate and is refused when that would take it more than the burst ahead of now.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from modalnomad.router.auth import Caller
from modalnomad.router.replies import Reply
from modalnomad.router.table import Match

_ROUNDING = 1e-9
"""Seconds: a thousand additions of 1/rate must not cost the last request of a burst."""


class Limits:
    """`rate`: requests per second and environment, 0: no limit. `burst`: seconds of it that may be spent at once; one
    request always may. `rates`: of single endpoints, `[environment/]app/endpoint`, beside those. At most `capacity`
    buckets are kept: those that are full again go first, then the one that was used least recently."""

    def __init__(
        self, rate: float, burst: float, *, rates: Mapping[str, float] | None = None, capacity: int = 10_000
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._rates = {tuple(name.split("/")): rate for name, rate in (rates or {}).items()}
        self._capacity = capacity
        self._full_at: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def admit(self, match: Match, caller: Caller, now: float) -> None:
        """Count one request. Raises Reply 429 `rate_limited` with the seconds until one more would be let in; then it
        counts nowhere."""
        if caller.rate is None:
            rate, name = self._rate, ("environment", match.route.environment)
        else:
            rate, name = caller.rate, ("token", caller.token_id or "")
        full_at = self._charged(name, rate, now) if rate > 0 else None
        if self._rates:
            route = match.route
            own = ("endpoint", route.environment, route.app, route.endpoint.name)
            rate = self._rates.get(own[1:], self._rates.get(own[2:], 0.0))
            if rate > 0:
                self._put(own, self._charged(own, rate, now), now)
        if full_at is not None:
            self._put(name, full_at, now)

    def _charged(self, name: tuple[str, ...], rate: float, now: float) -> float:
        """When the bucket would be full again after one more request. Raises Reply 429."""
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
        return full_at

    def _put(self, name: tuple[str, ...], full_at: float, now: float) -> None:
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
