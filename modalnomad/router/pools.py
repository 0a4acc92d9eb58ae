"""Which pools there are, of which revisions, and what the engine last listed for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Function
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.model.routes import ScalingOverride
from modalnomad.router import outcomes
from modalnomad.router.breaker import Breaker, Starts
from modalnomad.router.places import Place, PlaceState
from modalnomad.router.pool import Pool
from modalnomad.scaling.decide import Policy
from modalnomad.settings import RouterSettings, ScalingSettings

SETTLES = 1.0
"""Seconds in which an engine notices that a replica which ended has left room, and gives it to who waits for it."""
_OUT = (PlaceState.CLOSING, PlaceState.DRAINING)
_REMEMBERED = 1000
"""Retired revisions that are still known as such."""


class Pools:
    """A registry. It decides nothing but whether one more pool fits."""

    def __init__(self, settings: RouterSettings, scaling: ScalingSettings) -> None:
        self._settings = settings
        self._scaling = scaling
        self._pools: dict[PoolKey, Pool] = {}
        self._functions: dict[PoolKey, Function] = {}
        self._overrides: dict[RevisionId, ScalingOverride] = {}
        self.served: frozenset[RevisionId] = frozenset()
        """Revisions of the last `serve`."""
        self._retired: dict[RevisionId, None] = {}
        self._revisions: dict[RevisionId, Revision] = {}
        """Those served or retired."""
        self._freed = float("-inf")
        self._listed: dict[PoolKey, list[Replica]] = {}

    def __iter__(self) -> Iterator[Pool]:
        return iter(tuple(self._pools.values()))

    def get(self, key: PoolKey) -> Pool | None:
        """None: not woken yet, or dropped."""
        return self._pools.get(key)

    def of(self, revision: RevisionId) -> list[Pool]:
        """All pools of a revision."""
        return [pool for pool in self._pools.values() if pool.key.revision == revision]

    def make(self, revision: Revision, key: PoolKey, now: float) -> Pool:
        """A cold one."""
        scaling = self._scaling
        longest = scaling.breaker_backoff_max
        pool = self._pools[key] = Pool(
            key,
            self.policy(revision.function, key),
            starts_allowed=Starts(
                Breaker(scaling.breaker_failures, scaling.breaker_backoff, longest),
                Breaker(1, scaling.breaker_backoff, longest),
            ),
            queue_limit=self._settings.queue_limit,
            overstay=scaling.overstay,
            now=now,
        )
        self._functions[key] = revision.function
        return pool

    def policy(self, function: Function, key: PoolKey) -> Policy:
        """As declared, and as overridden."""
        override = self._overrides.get(key.revision)
        return Policy.of(function, parametrized=bool(key.parameters), override=override)

    def serve(
        self, revisions: Mapping[RevisionId, Revision], overrides: Mapping[RevisionId, ScalingOverride]
    ) -> list[tuple[Pool, Policy]]:
        """Take note. Returns the pools that are to be scaled by another policy now."""
        self.served = frozenset(revisions)
        self._revisions.update(revisions)
        before, self._overrides = self._overrides, dict(overrides)
        return [
            (pool, self.policy(self._functions[pool.key], pool.key))
            for pool in self
            if before.get(pool.key.revision) != self._overrides.get(pool.key.revision)
        ]

    def victim(self, revision: Revision) -> Pool | None:
        """The idle pool that makes room for one more of this revision: the one used least recently. None: there is
        room. Raises Reply 429 when all are in use."""
        if not revision.function.parameters:
            return None
        present = [pool for pool in self.of(revision.id) if not pool.evicted]
        if len(present) < self._settings.max_pools:
            return None
        idle = [pool for pool in present if pool.idle]
        if not idle:
            raise outcomes.too_many_pools(self._settings.max_pools)
        return min(idle, key=lambda pool: pool.used_at)

    def least_used(self, but: Pool) -> Pool | None:
        """Of the idle pools with a replica and no minimum to keep, the one used least recently."""
        idle = (p for p in self._pools.values() if p is not but and p.idle and p.places.offered and not p.policy.min)
        return min(idle, key=lambda pool: pool.used_at, default=None)

    def drop(self, key: PoolKey) -> None:
        """Forget a cold pool."""
        self._pools.pop(key, None)
        self._functions.pop(key, None)

    def retire(self, revision: RevisionId) -> None:
        """Requests for it follow their route from now on."""
        self._retired[revision] = None
        while len(self._retired) > _REMEMBERED:
            gone = next(iter(self._retired))
            del self._retired[gone]
            self._revisions.pop(gone, None)

    def revive(self, revision: RevisionId) -> bool:
        """It is served (again). False: it was not retired."""
        found = revision in self._retired
        self._retired.pop(revision, None)
        return found

    def is_retired(self, revision: RevisionId) -> bool:
        """No route leads to it any more."""
        return revision in self._retired

    def list_all(self, replicas: Iterable[Replica]) -> None:
        """What the engine lists now."""
        self._listed = {}
        for replica in replicas:
            self._listed.setdefault(replica.key.pool, []).append(replica)

    def listed(self, key: PoolKey) -> list[Replica]:
        """What the engine last listed for this pool, ended ones of the last minute included."""
        return self._listed.get(key, [])

    def homeless(self) -> list[PoolKey]:
        """Pools the engine lists replicas of, and that are not there."""
        return [key for key in self._listed if key not in self._pools]

    def revision(self, id: RevisionId) -> Revision | None:
        """One that is served, or was; None: it is not known here."""
        return self._revisions.get(id)

    def frees(self, place: Place, now: float) -> None:
        """It has ended; what left makes room."""
        if place.state in _OUT:
            self._freed = now

    def hopeful(self, but: ReplicaKey, now: float) -> bool:
        """Another replica of ours is on its way out, or just ended: there may soon be room."""
        places = (place for pool in self._pools.values() for place in pool.places if place.key != but)
        leaves = any(place.state in _OUT and (place.killed or not place.silent) for place in places)
        return now - self._freed < SETTLES or leaves
