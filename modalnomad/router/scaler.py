"""The slow loop: what is over its time, the minimum, the buffer, one drain at a time. Observe, decide, act."""

from __future__ import annotations

import asyncio
import logging

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.replica import PoolKey
from modalnomad.router.activator import Activator
from modalnomad.router.phase import State
from modalnomad.router.places import Effect
from modalnomad.router.pool import Pool
from modalnomad.router.telemetry import Counters
from modalnomad.scaling.decide import Decision, Reason, decide, fresh
from modalnomad.scaling.window import Peak
from modalnomad.settings import ScalingSettings

logger = logging.getLogger("modalnomad.router.scaler")

FORGET_AFTER = 120.0
"""Seconds a cold pool is remembered: longer than an engine lists ended replicas, and than any breaker stays open."""


class Scaler:
    """Looks at every pool each `settings.interval` seconds."""

    def __init__(
        self,
        activator: Activator,
        settings: ScalingSettings,
        *,
        clock: Clock = monotonic,
        counters: Counters | None = None,
    ) -> None:
        self._activator = activator
        self._settings = settings
        self._clock = clock
        self._peaks: dict[PoolKey, Peak] = {}
        self._counters = counters or Counters()

    async def run(self) -> None:
        """Until cancelled. A defect in one look is logged, and the next look comes all the same."""
        while True:
            try:
                self.look()
            except Exception:
                logger.exception("a look at the pools failed")
                self._counters.failed("scaler")
            await asyncio.sleep(self._settings.interval)

    def look(self) -> None:
        """One pass over all pools."""
        now = self._clock()
        for pool in self._activator.pools():
            self._activator.apply(pool, pool.expire(now))
            if pool.state is State.COLD and pool.idle and self._forgettable(pool, now):
                self._peaks.pop(pool.key, None)
                self._activator.drop(pool)
            elif not pool.retired:
                self._scale(pool, now)

    def _scale(self, pool: Pool, now: float) -> None:
        peak = self._peaks.get(pool.key) or fresh(pool.policy)
        decision = decide(now, pool.places.observed(len(pool.tickets)), pool.policy, peak)
        self._peaks[pool.key] = decision.state
        if decision.reason is not None:
            self._activator.apply(pool, _changes(pool, decision, decision.reason, now))
        for place in pool.places.offered:
            if not place.running:
                self._activator.greet(place, pool.policy.greet)

    def _forgettable(self, pool: Pool, now: float) -> bool:
        if pool.retired:
            return True
        return not pool.policy.min and now - pool.used_at >= max(FORGET_AFTER, self._settings.breaker_backoff_max)


def _changes(pool: Pool, decision: Decision, reason: Reason, now: float) -> list[Effect]:
    if decision.shed:
        return pool.shed(decision.shed, now, reason)
    if decision.drain is not None:
        return pool.close(decision.drain, now, pool.policy.window, reason)
    return pool.add(decision.start, now, reason)
