"""The slow loop: what is over its time, the minimum, the buffer, one drain at a time. Observe, decide, act."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.replica import PoolKey
from modalnomad.router.activator import Activator
from modalnomad.router.phase import State
from modalnomad.router.places import Effect
from modalnomad.router.pool import Pool
from modalnomad.router.telemetry import Counters
from modalnomad.scaling.decide import Decision, Policy, Reason, decide, fresh
from modalnomad.scaling.window import Peak
from modalnomad.settings import ScalingSettings

logger = logging.getLogger("modalnomad.router.scaler")

FORGET_AFTER = 120.0
"""Seconds a cold pool is remembered: longer than an engine lists ended replicas, and than any breaker stays open."""


@dataclass(slots=True)
class _Note:
    """What is known of one pool from the last look."""

    peak: Peak
    rests_until: float = 0.0
    """Nothing is due before, as long as `seen` does not change."""
    seen: tuple[int, float, Policy] | None = None


class Scaler:
    """Looks at every pool each `settings.interval` seconds; at one that rests, only when something is due."""

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
        self._notes: dict[PoolKey, _Note] = {}
        self._counters = counters or Counters()
        self._forget_after = max(FORGET_AFTER, settings.breaker_backoff_max)

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
            note = self._notes.get(pool.key)
            if note is None:
                note = self._notes[pool.key] = _Note(fresh(pool.policy))
            elif now < note.rests_until and note.seen == _seen(pool):
                continue
            self._activator.apply(pool, pool.expire(now, may_drain=self._activator.may_drain()))
            if pool.state is State.COLD and pool.idle and self._forgettable(pool, now):
                del self._notes[pool.key]
                self._activator.drop(pool)
            elif not pool.retired:
                self._scale(pool, note, now)

    def _scale(self, pool: Pool, note: _Note, now: float) -> None:
        decision = decide(now, pool.places.observed(len(pool.tickets)), pool.policy, note.peak)
        note.peak = decision.state
        may_drain, sends = self._activator.may_drain(), decision.drain is not None or bool(decision.shed)
        if decision.reason is not None and (may_drain or not sends):
            self._activator.apply(pool, _changes(pool, decision, decision.reason, now))
        if may_drain and not sends:
            self._activator.apply(pool, pool.replace(now, decision.wanted))
        greetings = [self._activator.greet(p, pool.policy.greet) for p in pool.places.offered if not p.running]
        note.seen = _seen(pool)
        note.rests_until = min([self._due(pool, now), *greetings])

    def _due(self, pool: Pool, now: float) -> float:
        """When time alone can make something of a pool that nobody uses; now: it is in use, or in change."""
        ready, policy = pool.places.offered, pool.policy
        leaving = any(place.leaving for place in ready)
        if leaving or not pool.idle or policy.buffer or len(ready) < max(policy.min, len(pool.places)):
            return now
        if not ready:
            return pool.used_at + self._forget_after
        return math.inf if len(ready) == policy.min else min(place.idle_since for place in ready) + policy.window

    def _forgettable(self, pool: Pool, now: float) -> bool:
        return pool.retired or (not pool.policy.min and now - pool.used_at >= self._forget_after)


def _seen(pool: Pool) -> tuple[int, float, Policy]:
    return pool.places.changes, pool.used_at, pool.policy


def _changes(pool: Pool, decision: Decision, reason: Reason, now: float) -> list[Effect]:
    if decision.shed:
        return pool.shed(decision.shed, now, reason)
    if decision.drain is not None:
        return pool.close(decision.drain, now, pool.policy.window, reason)
    return pool.add(decision.start, now, reason)
