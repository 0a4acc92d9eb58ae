"""What the back end says, into what the router knows: routes and tokens into tables, replicas into pools."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import TypeVar

from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError
from modalnomad.model.replica import Replica
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.engine import Starter
from modalnomad.router.activator import Activator
from modalnomad.router.auth import Auth
from modalnomad.router.table import RouteTable
from modalnomad.router.telemetry import Counters

logger = logging.getLogger("modalnomad.router.feed")

T = TypeVar("T")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds between two tries to watch after one failed; doubled from the first to the longest."""


class Feed:
    """Two watch loops. While one fails, the last good table (the last known replicas) stays.

    `replicas` holds the engine's latest snapshot with READY and DRAINING filled in.
    """

    def __init__(
        self,
        discovery: Discovery,
        engine: Starter,
        on_table: Callable[[RouteTable], None],
        auth: Auth,
        activator: Activator,
        *,
        counters: Counters | None = None,
    ) -> None:
        self._counters = counters or Counters()
        self._discovery = discovery
        self._engine = engine
        self._on_table = on_table
        self._auth = auth
        self._activator = activator
        self._engine_view: tuple[Replica, ...] = ()
        self._merge_due: asyncio.Handle | None = None
        self.replicas: Cell[tuple[Replica, ...]] = Cell(())
        self.routes_index: Cell[int] = Cell(-1)
        """`RouteSnapshot.index` of the table in use; -1: none came yet."""
        activator.on_change = self._merge_soon

    async def run_routes(self) -> None:
        """Until cancelled."""
        await self._watch("routes", self._discovery.watch, self.take_routes)

    async def run_replicas(self) -> None:
        """Until cancelled."""
        await self._watch("replicas", self._engine.watch, self.take_replicas)

    def take_routes(self, snapshot: RouteSnapshot) -> None:
        """The table first, then who may come in, then the pools: who waits must find the new route."""
        began = time.perf_counter()
        table = RouteTable.build(snapshot)
        self._on_table(table)
        self._auth.replace(snapshot.tokens)
        self._activator.serve(snapshot.revisions, snapshot.overrides)
        self.routes_index.set(snapshot.index)
        self._counters.flipped(time.perf_counter() - began, time.time())

    def take_replicas(self, replicas: tuple[Replica, ...]) -> None:
        """One snapshot of the engine."""
        self._engine_view = replicas
        self._activator.observe(replicas)
        self._merge()

    def _merge_soon(self) -> None:
        """Many replicas may change in one turn of the loop."""
        if self._merge_due is None:
            self._merge_due = asyncio.get_running_loop().call_soon(self._merge)

    def _merge(self) -> None:
        if self._merge_due is not None:
            self._merge_due.cancel()
            self._merge_due = None
        merged = tuple(replace(r, state=self._activator.state_of(r)) for r in self._engine_view)
        if merged != self.replicas.value:
            self.replicas.set(merged)

    async def _watch(self, name: str, watch: Callable[[], AsyncIterator[T]], take: Callable[[T], None]) -> None:
        """Hand each snapshot on; start again, with a growing pause, when the watch fails or ends."""
        pause = FIRST_PAUSE
        while True:
            try:
                snapshots = watch()
                try:
                    async for snapshot in snapshots:
                        take(snapshot)
                        pause = FIRST_PAUSE
                finally:
                    if isinstance(snapshots, AsyncGenerator):
                        await snapshots.aclose()
                logger.warning("the watch on %s ended; again in %.1f s", name, pause)
            except BackendError as error:
                logger.warning("the watch on %s failed, again in %.1f s: %s", name, pause, error.message)
            except Exception:
                logger.exception("the watch on %s failed, again in %.1f s", name, pause)
            self._counters.failed(name)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
