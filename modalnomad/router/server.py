"""The data plane put together: listeners, request path, background loops, and the order in which it all ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Replica, ReplicaKey
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.engine import Starter
from modalnomad.router.access_log import AccessLog
from modalnomad.router.activator import Activator
from modalnomad.router.app import Router
from modalnomad.router.auth import Auth
from modalnomad.router.calls import Caller
from modalnomad.router.feed import Feed
from modalnomad.router.limits import Limits
from modalnomad.router.listeners import Listeners
from modalnomad.router.load import Load
from modalnomad.router.scaler import Scaler
from modalnomad.router.table import Match, RouteTable
from modalnomad.router.telemetry import Counters, Meter
from modalnomad.router.upstream import Upstream
from modalnomad.settings import RouterSettings, ScalingSettings

LAST_WORDS = 0.25
"""Seconds for the answers to those who waited in vain."""


class RouterServer:
    """One router. `start` returns when it listens with a table; `stop` when nothing of it is left."""

    def __init__(
        self,
        *,
        engine: Starter,
        discovery: Discovery,
        settings: RouterSettings,
        scaling: ScalingSettings,
        platform_key: bytes,
        tls: ssl.SSLContext | None = None,
        may_drain: Callable[[], bool] = lambda: True,
        stale: Callable[[], Mapping[str, float]] = dict,
        clock: Clock = monotonic,
    ) -> None:
        """`may_drain`: see Activator. `stale`: source of what the router knows → Unix time since when it has not
        answered, so that what it last said is used; empty: all is fresh."""
        self._settings = settings
        self._tls = tls
        self.stale = stale
        self.counters = Counters()
        """What was counted since the start."""
        self._upstream = Upstream(settings, counters=self.counters, clock=clock)
        self._auth = Auth()
        self._died: asyncio.Future[None] | None = None
        self._tasks = Tasks("router", self._on_death)
        self.activator = Activator(
            engine=engine,
            ask=self._upstream.ask,
            forget=self._upstream.forget,
            resolve=self._match,
            settings=settings,
            scaling=scaling,
            platform_key=platform_key,
            may_drain=may_drain,
            clock=clock,
        )
        self.router = Router(
            table=RouteTable.build(RouteSnapshot()),
            auth=self._auth,
            limits=Limits(settings.rate, settings.rate_burst, rates=settings.rates),
            activator=self.activator,
            upstream=self._upstream,
            settings=settings,
            counters=self.counters,
            clock=clock,
        )
        self.caller = Caller(self.activator, self._upstream.connect)
        """Calls of what is no web endpoint."""
        self.feed = Feed(discovery, engine, self._swap, self._auth, self.activator, counters=self.counters)
        self.scaler = Scaler(self.activator, scaling, clock=clock, counters=self.counters)
        self._listeners = Listeners(self.router.gate)
        self._clock = clock
        self._leaving = False
        self.access_log = AccessLog(settings.access_log, clock=clock) if settings.access_log else None
        """None: there is none."""

    @property
    def port(self) -> int:
        """Of the main listener; 0 before `start`."""
        return self._listeners.port() or 0

    @property
    def replicas(self) -> Cell[tuple[Replica, ...]]:
        """The engine's view with READY and DRAINING filled in."""
        return self.feed.replicas

    def _match(self, host: str) -> Match:
        return self.router.table.match(host)

    def _swap(self, table: RouteTable) -> None:
        def meter(match: Match) -> Meter:
            route = match.route
            function = match.revision.function.tag
            return self.counters.meters.of(route.environment, route.app, function, route.endpoint.name)

        self.router.table = table.measured(meter)
        self.counters.meters.keep([match.meter for match in self.router.table.matches()], self._clock())

    def _on_death(self, name: str, error: BaseException) -> None:
        if self._died is not None and not self._died.done():
            self._died.set_exception(error)

    async def start(self, *, listen: bool = True) -> None:
        """Listen once the first table is there; or only make calls. Raises BackendRefused: port taken."""
        if self.access_log is not None:
            self.access_log.open()
            self.router.gate.access_log = self.access_log
        self._died = asyncio.get_running_loop().create_future()
        self._died.add_done_callback(_seen)
        self._tasks.guard(self.feed.run_routes(), "routes")
        self._tasks.guard(self.feed.run_replicas(), "replicas")
        self._tasks.guard(self.scaler.run(), "scaler")
        self._tasks.guard(self.router.gate.sweep(), "sweep")
        try:
            await self.feed.routes_index.until(lambda index: index >= 0)
            if listen:
                await self._listeners.open(self._settings.host, self._settings.port or 0, tls=self._tls)
        except BaseException:
            await self.stop()
            raise

    async def direct_port(self, host: str, port: int = 0) -> int:
        """A loopback port whose requests are all for `host`; the same one each time while it is open. `port`: the one
        wanted; 0: a free one. Raises BackendRefused: it is taken."""
        return self._listeners.port(host) or await self._listeners.open("127.0.0.1", port, host)

    async def close_direct(self, host: str) -> None:
        """Stop listening there."""
        self._listeners.close(host)

    async def died(self) -> None:
        """Raises the error of the first background loop that ended by itself; else never returns."""
        assert self._died is not None, "start comes first"
        await asyncio.shield(self._died)

    @property
    def unready(self) -> tuple[str, ...]:
        """Why no more requests should be sent here; empty: they should."""
        reasons = []
        if self.feed.routes_index.value < 0:
            reasons.append("no route table came yet")
        if self._leaving:
            reasons.append("it is stopping")
        elif not self.port:
            reasons.append("it does not listen")
        return (*reasons, *self.unhealthy)

    @property
    def unhealthy(self) -> tuple[str, ...]:
        """Why it should be started anew; empty: it works."""
        died = self._died
        if died is None or not died.done() or died.cancelled():
            return ()
        return (f"a background loop ended: {died.exception()!r}",)

    @property
    def connections(self) -> tuple[int, int]:
        """Open to replicas, and of those unused. WebSockets are not among them."""
        return self._upstream.connections

    def load(self, revision: RevisionId) -> Load:
        """How busy it is."""
        return self.activator.load(revision)

    def busy(self) -> frozenset[ReplicaKey]:
        """Replicas on which requests run."""
        return frozenset(place.key for pool in self.activator.pools() for place in pool.places if place.running)

    async def drain(self) -> bool:
        """Steps 1 and 2 of `stop`: afterwards replicas can be retired, and no request brings them back. False: the time
        was not enough for all that runs. Idempotent."""
        if not self._leaving:
            self._leaving = True
            if self.port:
                await asyncio.sleep(self._settings.drain_delay)
        self._listeners.close_all()
        await self.router.gate.farewell()
        self.router.gate.drain()
        limit = self._settings.drain_timeout
        return all(await asyncio.gather(self.router.gate.empty(limit), self.caller.drain(limit)))

    async def stop(self, *, wait: bool = True) -> None:
        """Idempotent. In this order (`wait` False: without 2):

        1. readiness ends; after `drain_delay` seconds no new connections; busy ones get `Connection: close`, new
           requests 503 `draining`; a moment later idle ones are closed
        2. wait for what runs or waits, `drain_timeout` seconds at most; WebSockets have no end and are told at once
        3. whoever still waits for a replica is told 503 `draining`
        4. abort the rest
        5. the loops that fed all this
        6. connections to replicas
        """
        gate = self.router.gate
        if wait:
            await self.drain()
        self._leaving = True
        self._listeners.close_all()
        gate.drain()
        await self.activator.close()
        await gate.empty(LAST_WORDS)
        await gate.close()
        await self._tasks.close()
        await self._upstream.close()
        if self.access_log is not None:
            await asyncio.to_thread(self.access_log.close)


def _seen(future: asyncio.Future[None]) -> None:
    # Nobody may be waiting in `died`; the death itself is logged by its task's owner.
    if not future.cancelled():
        future.exception()
