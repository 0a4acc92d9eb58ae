"""Activator, feed and scaler around small replicas on real sockets, without the request path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from modalnomad.kit.tasks import Tasks
from modalnomad.model.replica import Address, PoolKey
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.router.activator import Activator, Lease
from modalnomad.router.auth import Auth
from modalnomad.router.feed import Feed
from modalnomad.router.scaler import Scaler
from modalnomad.router.table import Match, RouteTable
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support.stub_replicas import PLATFORM_KEY, StubEngine, ask


class Platform:
    """Activator, feed and scaler around a stub engine."""

    def __init__(self, folder: Path, settings: RouterSettings, scaling: ScalingSettings) -> None:
        clock = asyncio.get_running_loop().time  # which may be a SteadyLoop's
        self.engine = StubEngine(folder)
        self.table = RouteTable({})
        self.forgotten: list[Address] = []
        self.activator = Activator(
            engine=self.engine,
            ask=ask,
            forget=self.forgotten.append,
            resolve=self._resolve,
            settings=settings,
            scaling=scaling,
            platform_key=PLATFORM_KEY,
            clock=clock,
        )
        self.feed = Feed(cast(Discovery, None), self.engine, self._take_table, Auth(), self.activator)
        self.scaler = Scaler(self.activator, scaling, clock=clock)

    def _take_table(self, table: RouteTable) -> None:
        self.table = table

    def _resolve(self, host: str) -> Match:
        return self.table.match(host)

    def route(self, *matches: Match) -> None:
        """From now on these routes are served."""
        revisions = {match.revision.id: match.revision for match in matches}
        self.feed.take_routes(RouteSnapshot(tuple(match.route for match in matches), revisions))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a value; the test's own time limit bounds it."""
        while not condition():  # noqa: ASYNC110 - counts have no event to wait for
            await asyncio.sleep(0.005)


@asynccontextmanager
async def platform_at(
    folder: Path, *, settings: RouterSettings | None = None, scaling: ScalingSettings | None = None
) -> AsyncIterator[Platform]:
    """Looking at its pools 50 times a second."""
    platform = Platform(folder, settings or RouterSettings(), scaling or ScalingSettings(interval=0.02))
    async with Tasks("test") as tasks:
        tasks.guard(platform.feed.run_replicas(), "replicas")
        tasks.guard(platform.scaler.run(), "scaler")
        try:
            yield platform
        finally:
            await platform.activator.close()
            await platform.engine.close()


Opener = Callable[..., Awaitable[Platform]]


def pool_of(match: Match) -> PoolKey:
    """Of a Function without parameters."""
    return PoolKey(match.revision.id)


async def use(platform: Platform, match: Match, until: asyncio.Event | None = None) -> Lease:
    """Hold a place until the event is set, or for no time."""
    async with platform.activator.lease(match, pool_of(match)) as lease:
        if until is not None:
            await until.wait()
        return lease
