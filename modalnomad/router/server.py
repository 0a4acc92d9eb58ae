"""The data plane put together: listeners, request path, background loops, and the order in which it all ends."""

from __future__ import annotations

import asyncio
import ssl

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Replica, ReplicaKey
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.engine import Starter
from modalnomad.router.activator import Activator
from modalnomad.router.app import Router
from modalnomad.router.auth import Auth
from modalnomad.router.feed import Feed
from modalnomad.router.limits import Limits
from modalnomad.router.listeners import Listeners
from modalnomad.router.load import Load
from modalnomad.router.scaler import Scaler
from modalnomad.router.table import Match, RouteTable
from modalnomad.router.telemetry import Counters
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
        clock: Clock = monotonic,
    ) -> None:
        self._settings = settings
        self._tls = tls
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
            clock=clock,
        )
        self.router = Router(
            table=RouteTable.build(RouteSnapshot()),
            auth=self._auth,
            limits=Limits(settings.rate, settings.rate_burst),
            activator=self.activator,
            upstream=self._upstream,
            settings=settings,
            counters=self.counters,
            clock=clock,
        )
        self.feed = Feed(discovery, engine, self._swap, self._auth, self.activator)
        self.scaler = Scaler(self.activator, scaling, clock=clock)
        self._listeners = Listeners(self.router.gate)

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
        self.router.table = table

    def _on_death(self, name: str, error: BaseException) -> None:
        if self._died is not None and not self._died.done():
            self._died.set_exception(error)

    async def start(self) -> None:
        """Listen once the first table is there. Raises BackendRefused: port taken."""
        self._died = asyncio.get_running_loop().create_future()
        self._died.add_done_callback(_seen)
        self._tasks.guard(self.feed.run_routes(), "routes")
        self._tasks.guard(self.feed.run_replicas(), "replicas")
        self._tasks.guard(self.scaler.run(), "scaler")
        self._tasks.guard(self.router.gate.sweep(), "sweep")
        try:
            await self.feed.routes_index.until(lambda index: index >= 0)
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

    def load(self, revision: RevisionId) -> Load:
        """How busy it is."""
        return self.activator.load(revision)

    def busy(self) -> frozenset[ReplicaKey]:
        """Replicas on which requests run."""
        return frozenset(place.key for pool in self.activator.pools() for place in pool.places if place.running)

    async def drain(self) -> bool:
        """Steps 1 and 2 of `stop`: afterwards replicas can be retired, and no request brings them back. False: the time
        was not enough for all that runs. Idempotent."""
        self._listeners.close_all()
        self.router.gate.drain()
        return await self.router.gate.empty(self._settings.drain_timeout)

    async def stop(self, *, wait: bool = True) -> None:
        """Idempotent. In this order (`wait` False: without 2):

        1. no new connections; idle ones are closed, busy ones get `Connection: close`, newcomers on them 503 `draining`
        2. wait for what runs or waits, `drain_timeout` seconds at most; WebSockets have no end and are closed at once
        3. whoever still waits for a replica is told 503 `draining`
        4. abort the rest
        5. the loops that fed all this
        6. connections to replicas
        """
        gate = self.router.gate
        if wait:
            await self.drain()
        self._listeners.close_all()
        gate.drain()
        await self.activator.close()
        await gate.empty(LAST_WORDS)
        await gate.close()
        await self._tasks.close()
        await self._upstream.close()


def _seen(future: asyncio.Future[None]) -> None:
    # Nobody may be waiting in `died`; the death itself is logged by its task's owner.
    if not future.cancelled():
        future.exception()
