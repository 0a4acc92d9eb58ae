"""What becomes of replicas, as the activator carries it out: counted for each Function, the latest kept with reasons.

Nothing here decides anything, and nothing here is on the path of a request that finds a free place.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from modalnomad.kit.clock import Clock
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.router.phase import State
from modalnomad.router.places import Drain, Effect, Ended, Failed, Kill, Opened, Start
from modalnomad.router.pool import Pool
from modalnomad.router.telemetry import FORGET_AFTER, Histogram, Life

LATEST: Final = 200
"""Decisions that are kept."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that was done to a replica, or that it did. `kind` is one of a few words, `reason` for people."""

    time: float
    """Unix time."""
    what: str
    """`start`, `failed`, `drain`, `kill`, `died`."""
    environment: str
    app: str
    function: str
    replica: str
    kind: str
    reason: str


class Observer:
    """Told of every effect, in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lives: dict[tuple[str, str, str], Life] = {}
        self._known: dict[RevisionId, Life] = {}
        self._waking: dict[PoolKey, float] = {}
        self._failed: dict[PoolKey, str] = {}
        self._starting: dict[ReplicaKey, float] = {}
        self._leaving: set[ReplicaKey] = set()
        self.decisions: deque[Decision] = deque(maxlen=LATEST)

    def lives(self) -> tuple[Life, ...]:
        """Of every Function that had a pool, up to an hour after the last one was gone."""
        return tuple(self._lives.values())

    def life(self, revision: RevisionId) -> Life | None:
        """None: it never had a pool."""
        return self._known.get(revision)

    def knows(self, revision: Revision) -> None:
        """It has a pool now."""
        if revision.id not in self._known:
            name = (revision.environment, revision.app, revision.function.tag)
            self._known[revision.id] = self._lives.setdefault(name, Life(*name))

    def forget(self, kept: Collection[RevisionId]) -> None:
        """Revisions but `kept` are neither served nor do they have a pool."""
        now = self._clock()
        for gone in self._known.keys() - kept:
            self._known.pop(gone).gone_at = now
        alive = {id(life) for life in self._known.values()}
        for name, life in tuple(self._lives.items()):
            if id(life) not in alive and now - life.gone_at >= FORGET_AFTER:
                del self._lives[name]

    def saw(self, pool: Pool, effect: Effect) -> None:
        """One effect."""
        life = self._known.get(pool.key.revision)
        if life is None:
            return
        match effect:
            case Start():
                self._starting[effect.key] = self._clock()
                life.starts[effect.reason.kind] = life.starts.get(effect.reason.kind, 0) + 1
                self._note("start", life, effect.key, effect.reason.kind, effect.reason.text)
            case Opened():
                began = self._starting.pop(effect.place.key, None)
                if began is not None:
                    life.start_time.add(self._clock() - began)
            case Failed():
                code = effect.failure.code
                if pool.key in self._waking:
                    self._failed[pool.key] = code
                life.start_failures[code] = life.start_failures.get(code, 0) + 1
                self._note("failed", life, effect.key, code, effect.failure.reason)
            case Ended():
                self._ended(life, effect)
            case Drain() | Kill():
                self._leaves(life, effect)

    def settled(self, pool: Pool) -> None:
        """All effects of one change were carried out."""
        waking = pool.state is State.WAKING
        began = self._waking.get(pool.key)
        if waking == (began is not None):
            return
        if began is None:
            self._waking[pool.key] = self._clock()
            self._failed.pop(pool.key, None)
            return
        del self._waking[pool.key]
        failed = self._failed.pop(pool.key, "abandoned")
        outcome = "ready" if pool.state is State.WARM else failed
        if (life := self._known.get(pool.key.revision)) is not None:
            life.wakes.setdefault(outcome, Histogram()).add(self._clock() - began)

    def _ended(self, life: Life, effect: Ended) -> None:
        self._starting.pop(effect.place.key, None)
        self._leaving.discard(effect.place.key)
        if effect.failure is not None:
            life.deaths += 1
            self._note("died", life, effect.place.key, effect.failure.code, effect.failure.reason)

    def _leaves(self, life: Life, effect: Drain | Kill) -> None:
        """A drain may be asked for more than once, and a kill may follow it."""
        kind = effect.reason.kind
        if isinstance(effect, Kill):
            life.kills[kind] = life.kills.get(kind, 0) + 1
            self._note("kill", life, effect.key, kind, effect.reason.text)
        elif effect.key not in self._leaving:
            self._leaving.add(effect.key)
            life.drains[kind] = life.drains.get(kind, 0) + 1
            self._note("drain", life, effect.key, kind, effect.reason.text)

    def _note(self, what: str, life: Life, key: ReplicaKey, kind: str, reason: str) -> None:
        self.decisions.append(
            Decision(time.time(), what, life.environment, life.app, life.function, str(key), kind, reason)
        )
