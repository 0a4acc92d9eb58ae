"""Owns the pools and the futures behind their tickets: lease = a free place at once, or one wake and a bounded wait."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Address, Failure, PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.model.routes import ScalingOverride
from modalnomad.ports.engine import Starter
from modalnomad.router import outcomes
from modalnomad.router.actions import Actions
from modalnomad.router.intake import Intake
from modalnomad.router.leases import Lease, Leasing, PlaceLease
from modalnomad.router.load import Load, count
from modalnomad.router.observer import Observer
from modalnomad.router.outcomes import StartFailed
from modalnomad.router.parameters import still_valid
from modalnomad.router.places import (
    Deny,
    Drain,
    Effect,
    Ended,
    Failed,
    Grant,
    Kill,
    Opened,
    Place,
    PlaceState,
    Probe,
    Recheck,
    Start,
    Ticket,
)
from modalnomad.router.pool import Pool
from modalnomad.router.pools import Pools
from modalnomad.router.probe import Asker, Prober
from modalnomad.router.replies import Reply
from modalnomad.router.table import Match
from modalnomad.router.warmers import Rechecks, Warmers
from modalnomad.settings import RouterSettings, ScalingSettings

__all__ = ["Activator", "Lease", "Load", "StartFailed"]

logger = logging.getLogger("modalnomad.router.activator")

_CLOSING = Failure("start_failed", "The router is shutting down.")
_OWN: Final = frozenset({"single_use", "asked"})
"""Why any of several routers drains a replica."""
_RETIRED = Failure("start_failed", "Its revision is not served any more.")


class Activator:
    """`resolve` finds the present match of a host name (Reply 404: there is none any more), for requests whose route
    moves while they wait. `may_drain`: whether this router is the one of several that sends replicas away when they
    are too many, have to make room, are retired or to be replaced; each of them starts what it needs, and ends what it
    used up. `on_change` is called when a replica became ready, leaves, or is gone."""

    def __init__(
        self,
        *,
        engine: Starter,
        ask: Asker,
        forget: Callable[[Address], None],
        resolve: Callable[[str], Match],
        settings: RouterSettings,
        scaling: ScalingSettings,
        platform_key: bytes,
        may_drain: Callable[[], bool] = lambda: True,
        clock: Clock = monotonic,
    ) -> None:
        self.prober = Prober(ask, platform_key)
        self._actions = Actions(engine, self.prober, forget, self)
        self._pools = Pools(settings, scaling)
        self._resolve = resolve
        self._settings = settings
        self.may_drain = may_drain
        self._clock = clock
        self._tickets = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Place | Deny]] = {}
        self._warmers = Warmers()
        self._rechecks = Rechecks(lambda pool: self.apply(pool, pool.settle(self._clock())))
        self._closed = False
        self.observer = Observer(clock)
        """What becomes of replicas, for whoever watches."""
        self._intake = Intake(
            self._pools,
            self.observer,
            make_room=self._make_way,
            probe=self._actions.probe,
            ended=self.heard_ended,
        )
        self.on_change: Callable[[], None] = lambda: None

    # --- Requests ---------------------------------------------------------------------------------------------

    def lease(
        self,
        match: Match,
        key: PoolKey,
        avoid: frozenset[ReplicaKey] = frozenset(),
        *,
        until: float | None = None,
        request_id: bytes = b"",
    ) -> AbstractAsyncContextManager[Lease]:
        """A place for one request; `avoid`: replicas that just refused it, taken only when there is no other; `until`:
        when it gives up waiting for a free one (None: `queue_timeout` from now); `request_id`: told to the engine,
        should a replica be started for it. Entering raises Reply: 429 queue_full, too_many_pools; 503 start_failed,
        unplaceable, no_capacity, queue_timeout, draining; 504 startup_timeout; 404, 422 when the route moved
        meanwhile."""
        return Leasing(self, match, key, avoid, until, request_id)

    def take(self, match: Match, key: PoolKey, avoid: frozenset[ReplicaKey]) -> PlaceLease | None:
        """A free place at once, or None."""
        pool = self._pools.get(key)
        if pool is None or (place := pool.take(self._clock(), avoid)) is None:
            return None
        if pool.crowded(place):
            self.apply(pool, pool.settle(self._clock()))
        return self._leased(pool, place, match)

    async def wait(
        self, match: Match, key: PoolKey, avoid: frozenset[ReplicaKey], until: float | None, request_id: bytes
    ) -> PlaceLease:
        """A place once there is one. Raises Reply."""
        deadline = self._clock() + self._settings.queue_timeout if until is None else until
        ticket = Ticket(next(self._tickets), deadline, avoid, request_id.decode())
        while True:
            if self._closed:
                raise outcomes.draining()
            now = self._clock()
            if self._pools.is_retired(key.revision):
                match, key = self._follow(match, key)
            pool = self._open(match.revision, key, now)
            outcome = await self._queue(pool, ticket)
            if isinstance(outcome, Place):
                return self._leased(pool, outcome, match)
            if outcome.why != "moved":
                raise outcomes.reply_for(outcome, match.revision)

    async def _queue(self, pool: Pool, ticket: Ticket) -> Place | Deny:
        """Subscribe, then look: the answer may come while the ticket is put in."""
        future: asyncio.Future[Place | Deny] = asyncio.get_running_loop().create_future()
        self._waiting[ticket.id] = future
        try:
            self.apply(pool, pool.arrive(ticket, self._clock()))
            return await future
        except asyncio.CancelledError:
            granted = future.result() if future.done() and not future.cancelled() else None
            if isinstance(granted, Place):
                self.apply(pool, pool.release(granted, self._clock()))
            else:
                self.apply(pool, pool.leave(ticket.id, self._clock()))
            raise
        finally:
            del self._waiting[ticket.id]

    def release(self, lease: PlaceLease) -> None:
        """The place is free again."""
        if lease.taken:
            lease.place.refusals = 0
        effects = lease.pool.release(lease.place, self._clock())
        if effects:
            self.apply(lease.pool, effects)

    def missed(self, lease: PlaceLease, *, busy: bool = False, timed_out: bool = False, hung: bool = False) -> None:
        """The replica did not take the request."""
        lease.taken = False
        now = self._clock()
        if busy:
            self.apply(lease.pool, lease.pool.refused(lease.place, now))
        else:
            self.apply(lease.pool, lease.pool.strike(lease.place, now, timed_out=timed_out, hung=hung))

    def _leased(self, pool: Pool, place: Place, match: Match) -> PlaceLease:
        address = place.address
        if address is None:
            raise RuntimeError(f"{place.key} is ready but has no address")
        return PlaceLease(self, pool, place, place.key, address, place.ticket, match)

    def _follow(self, match: Match, key: PoolKey) -> tuple[Match, PoolKey]:
        """Where the request's host leads now. When that is the same revision, it is served after all."""
        now = self._resolve(match.route.hosts[0])
        if now.revision.id == key.revision:
            self._revive(key.revision)
            return match, key
        moved = still_valid(key, now)
        if moved is None:
            raise outcomes.other_parameters()
        return now, moved

    def _open(self, revision: Revision, key: PoolKey, now: float) -> Pool:
        """The pool, made when there is none. Raises Reply 429 too_many_pools."""
        pool = self._pools.get(key)
        if pool is None:
            victim = self._pools.victim(revision)
            if victim is not None and self.may_drain():
                self.apply(victim, victim.evict(now))
            pool = self._intake.open(revision, key, now)
        return pool

    def _make_way(self, revision: Revision) -> None:
        """One more pool of it is there, whatever the limit says: the idle one that was used least recently goes."""
        with contextlib.suppress(Reply):
            victim = self._pools.victim(revision)
            if victim is not None and self.may_drain():
                self.apply(victim, victim.evict(self._clock()))

    # --- Revisions --------------------------------------------------------------------------------------------

    async def warm(self, revision: Revision, key: PoolKey, count: int) -> None:
        """Start replicas until `count` are ready (within max_containers). Raises StartFailed."""
        if self._closed:
            raise StartFailed(_CLOSING)
        self._revive(revision.id)
        pool = self._open(revision, key, self._clock())
        wanted = count if pool.policy.max is None else min(count, max(1, pool.policy.max))
        failure = await self._warmers.wait(pool, wanted, lambda: self.apply(pool, pool.warm(wanted, self._clock())))
        if failure is not None:
            raise StartFailed(failure)

    async def retire(self, revision: RevisionId) -> None:
        """Drain every replica of the revision; they finish what they hold. Who waits follows the route."""
        self._retire(revision)

    def _retire(self, revision: RevisionId) -> None:
        self._pools.retire(revision)
        for pool in self._pools.of(revision):
            self.apply(pool, pool.retire(self._clock()))
            self._warmers.fail(pool, _RETIRED)

    def serve(self, revisions: Mapping[RevisionId, Revision], overrides: Mapping[RevisionId, ScalingOverride]) -> None:
        """From now on these revisions are served and no others, scaled as `overrides` say. Those without a route count:
        a schedule calls them."""
        known, now = self._pools.served, self._clock()
        for pool, policy in self._pools.serve(revisions, overrides):
            self.apply(pool, pool.adopt(policy, now))
        for id, revision in revisions.items():
            if id not in known:
                self._revive(id)
            if not revision.function.parameters and self._pools.policy(revision.function, PoolKey(id)).min:
                self._open(revision, PoolKey(id), now)
        for gone in known - revisions.keys():
            self._retire(gone)
        self._intake.adopt(now)
        self.observer.forget({*revisions, *(pool.key.revision for pool in self._pools)})

    def _revive(self, revision: RevisionId) -> None:
        if self._pools.revive(revision):
            self._intake.look_again(revision, self._clock())
            for pool in self._pools.of(revision):
                self.apply(pool, pool.revive(self._clock()))

    # --- Replicas ---------------------------------------------------------------------------------------------

    def observe(self, replicas: Iterable[Replica]) -> None:
        """Take in one whole snapshot of the engine."""
        self._intake.observe(replicas, self._clock())

    def heard_ready(self, key: ReplicaKey, ticket: bytes) -> None:
        """It said so itself, to this ticket."""
        pool = self._pools.get(key.pool)
        if pool is not None and (place := pool.places.get(key)) is not None:
            place.ticket = ticket
            self.apply(pool, pool.ready(key, self._clock()))

    def heard_ended(self, key: ReplicaKey, failure: Failure | None) -> None:
        """It is gone, or it could not be started."""
        pool = self._pools.get(key.pool)
        if pool is not None and (place := pool.places.get(key)) is not None:
            now = self._clock()
            self._pools.frees(place, now)
            hope = self._pools.hopeful(key, now) or self._make_room(pool, failure)
            self.apply(pool, pool.ended(key, failure, now, hope=hope))

    def _make_room(self, pool: Pool, failure: Failure | None) -> bool:
        """No room for a replica somebody waits for: the idle pool that was used least recently gives up its own."""
        wanted = (pool.tickets or pool.floor) and self.may_drain()
        if failure is None or failure.code != "no_capacity" or not wanted:
            return False
        victim = self._pools.least_used(pool)
        if victim is not None:
            self.apply(victim, victim.evict(self._clock()))
        return victim is not None

    def heard_refusal(self, key: ReplicaKey, idle_for: float) -> None:
        """It does not drain: something ran `idle_for` seconds ago."""
        if (pool := self._pools.get(key.pool)) is not None:
            self.apply(pool, pool.drain_refused(key, self._clock(), idle_for))
            self.on_change()

    def drain_due(self, key: ReplicaKey) -> Place | None:
        """Asked right before a drain is sent. None: do not."""
        pool = self._pools.get(key.pool)
        place = pool.drain_sent(key, self._clock()) if pool is not None else None
        if place is not None:
            self.on_change()
        return place

    def state_of(self, replica: Replica) -> ReplicaState:
        """The engine's view, with what only the router knows: READY and DRAINING."""
        if replica.state in (ReplicaState.FAILED, ReplicaState.GONE):
            return replica.state
        pool = self._pools.get(replica.key.pool)
        place = pool.places.get(replica.key) if pool is not None else None
        if place is None or place.state is PlaceState.STARTING:
            return replica.state
        return ReplicaState.READY if place.live or place.running else ReplicaState.DRAINING

    # --- Effects ----------------------------------------------------------------------------------------------

    def apply(self, pool: Pool, effects: Iterable[Effect]) -> None:
        """Carry out what a change of the pool asks for."""
        for effect in effects:
            if isinstance(effect, Drain) and not (effect.reason.kind in _OWN or self.may_drain()):
                continue  # it stays closed here; whoever may drain does
            self.observer.saw(pool, effect)
            match effect:
                case Grant():
                    self._answer(pool, effect.ticket, effect.place)
                case Deny():
                    self._answer(pool, effect.ticket, effect)
                case Start():
                    self._actions.start(effect)
                case Opened():
                    self._warmers.check(pool)
                    self.on_change()
                case Failed():
                    logger.warning("%s did not start: %s", effect.key, effect.failure.reason)
                    self._warmers.fail(pool, effect.failure)
                case Ended():
                    if effect.failure is not None:
                        logger.warning("%s died: %s", effect.place.key, effect.failure.reason)
                    self._actions.ended(effect.place)
                    self.on_change()
                case Drain():
                    self._actions.drain(effect)
                case Probe():
                    self._actions.probe(effect.place)
                case Kill():
                    self._actions.kill(effect)
                case Recheck():
                    self._rechecks.after(effect.at - self._clock(), pool)
        self.observer.settled(pool)

    def _answer(self, pool: Pool, ticket: int, answer: Place | Deny) -> None:
        future = self._waiting.get(ticket)
        if future is not None and not future.done():
            future.set_result(answer)
        elif isinstance(answer, Place):  # its client went away at this very moment
            self.apply(pool, pool.release(answer, self._clock()))

    # --- For the scaler, tests, the end -----------------------------------------------------------------------

    @property
    def served(self) -> frozenset[RevisionId]:
        """Revisions of the last `serve`."""
        return self._pools.served

    def pools(self) -> Iterator[Pool]:
        """All pools at this moment."""
        return iter(self._pools)

    def drop(self, pool: Pool) -> None:
        """Forget a pool that is cold."""
        self._pools.drop(pool.key)

    def greet(self, place: Place, every: float) -> float:
        """Tell an idle replica that is kept that somebody still cares, once per `every` seconds. Returns when the next
        greeting is due."""
        return self._actions.greet(place, self._clock(), every)

    def load(self, revision: RevisionId) -> Load:
        """Counts for tests, `serve` and admin."""
        return count(self._pools.of(revision))

    async def close(self) -> None:
        """Answer everybody waiting 503 `draining`, end all background work. Replicas are left as they are."""
        self._closed = True
        self._rechecks.close()
        for ticket, future in self._waiting.items():
            if not future.done():
                future.set_result(Deny(ticket, "draining"))
        self._warmers.close(_CLOSING)
        await self._actions.close()
