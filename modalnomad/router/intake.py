"""What the engine lists, into pools: replicas that were started for requests here, and those that other routers, or
this one before it was restarted, asked for.

Every live replica of a revision that is served, or was, has a place in every router: it is offered as soon as it
answers, and whichever router sends replicas away knows all there are. Replicas of revisions nobody here knows end by
themselves, when nobody talks to them any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.router.observer import Observer
from modalnomad.router.places import Place, PlaceState
from modalnomad.router.pool import Pool
from modalnomad.router.pools import Pools

_ENDED = (ReplicaState.FAILED, ReplicaState.GONE)
_LOST = Failure("replica_gone", "its machine is lost: it was started again elsewhere")


class Intake:
    """`make_room` is called before a pool is made for a revision; `probe` and `ended` for what was learned."""

    def __init__(
        self,
        pools: Pools,
        observer: Observer,
        *,
        make_room: Callable[[Revision], None],
        probe: Callable[[Place], None],
        ended: Callable[[ReplicaKey, Failure | None], None],
    ) -> None:
        self._pools = pools
        self._observer = observer
        self._make_room = make_room
        self._probe = probe
        self._ended = ended

    def observe(self, replicas: Iterable[Replica], now: float) -> None:
        """Take in one whole snapshot of the engine."""
        self._pools.list_all(replicas)
        for pool in self._pools:
            listed = self._pools.listed(pool.key)
            self._take(pool, listed, now)
            known = {replica.key for replica in listed}
            for place in pool.places:
                if place.listed and place.key not in known:
                    self._ended(place.key, None)
        self.adopt(now)

    def open(self, revision: Revision, key: PoolKey, now: float) -> Pool:
        """A new pool, with what is listed for it."""
        pool = self._pools.make(revision, key, now)
        pool.retired = self._pools.is_retired(revision.id)
        self._observer.knows(revision)
        self._take(pool, self._pools.listed(key), now)
        return pool

    def adopt(self, now: float) -> None:
        """Make pools for live replicas of known revisions that have none here."""
        for key in self._pools.homeless():
            revision = self._pools.revision(key.revision)
            if revision is not None and any(map(self._is_ours, self._pools.listed(key))):
                self._make_room(revision)
                self.open(revision, key, now)

    def look_again(self, revision: RevisionId, now: float) -> None:
        """What a deploy started ahead of it is served from now on."""
        for pool in self._pools.of(revision):
            self._take(pool, self._pools.listed(pool.key), now)

    def _is_ours(self, replica: Replica) -> bool:
        """Alive, and not of a deploy under way: that would be drained as what is no longer served."""
        staged = replica.staged and self._pools.is_retired(replica.key.pool.revision)
        return replica.state not in _ENDED and not staged

    def _take(self, pool: Pool, listed: Iterable[Replica], now: float) -> None:
        for replica in listed:
            known = pool.places.get(replica.key)
            if known is None and replica.state not in _ENDED and not self._is_ours(replica):
                continue
            if replica.state in _ENDED:
                pool.seen(replica.key, None, now, alive=False)
                self._ended(replica.key, replica.failure)
                continue
            if known is not None and _elsewhere(known, replica):
                self._ended(replica.key, None if known.state is PlaceState.STARTING else _LOST)
            place = pool.seen(replica.key, replica.address, now, alive=True, leaving=replica.leaving)
            if place is not None:
                place.listed = True
                if place.state is PlaceState.STARTING:
                    self._probe(place)


def _elsewhere(place: Place, replica: Replica) -> bool:
    """It is another process than the one that has the place, whose end nobody told: an engine that starts what was on a
    lost machine again may show that first. What is sent to the old address is lost, drains too."""
    return None not in (place.address, replica.address) and place.address != replica.address
