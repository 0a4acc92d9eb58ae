"""Several routers in front of the same small replicas, of which one at a time may send replicas away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import ReplicaKey
from modalnomad.model.routes import RouteSnapshot
from modalnomad.router.places import Place, PlaceState
from modalnomad.router.server import RouterServer
from modalnomad.router.table import Match
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support import raw
from tests.support.scaling import StubDiscovery
from tests.support.stub_replicas import PLATFORM_KEY, StubEngine


class Routers:
    """`holder`: the index of the router that may; None: none does."""

    def __init__(self, folder: Path, count: int, settings: RouterSettings) -> None:
        self.clock = asyncio.get_running_loop().time  # which may be a SteadyLoop's
        self.engine = StubEngine(folder)
        self.engine.obedient = True
        self.holder: int | None = 0
        self.discovery = StubDiscovery()
        self.routers = [self._router(index, settings) for index in range(count)]

    def _router(self, index: int, settings: RouterSettings) -> RouterServer:
        return RouterServer(
            engine=self.engine,
            discovery=self.discovery,  # type: ignore[arg-type]  # all the router asks of it
            settings=settings,
            scaling=ScalingSettings(interval=0.02),
            platform_key=PLATFORM_KEY,
            may_drain=lambda: self.holder == index,
            clock=self.clock,
        )

    async def serve(self, *matches: Match) -> None:
        """From now on these; returns when all of them know."""
        index = self.discovery.cell.value.index + 1
        routes, revisions = tuple(m.route for m in matches), {m.revision.id: m.revision for m in matches}
        self.discovery.cell.set(RouteSnapshot(routes, revisions, index=index))
        for router in self.routers:
            await router.feed.routes_index.until(lambda found: found >= index)

    async def ask(self, index: int, match: Match, path: str = "/") -> raw.Response:
        """One request through one of them, on a connection of its own."""
        async with raw.client(self.routers[index].port) as client:
            return await client.request(raw.get(path, match.route.hosts[0]))

    def places(self, index: int) -> list[Place]:
        """All replicas one of them knows."""
        return [place for pool in self.routers[index].activator.pools() for place in pool.places]

    def place(self, index: int, key: ReplicaKey) -> Place | None:
        """One replica as one of them sees it."""
        return next((place for place in self.places(index) if place.key == key), None)

    def idle_for(self, index: int, key: ReplicaKey) -> float:
        """Seconds, as one of them sees it; 0: it is not ready."""
        place = self.place(index, key)
        return self.clock() - place.idle_since if place is not None and place.state is PlaceState.READY else 0.0

    def running(self, revision: RevisionId) -> list[ReplicaKey]:
        """Replicas that have not ended."""
        return [
            stub.key for stub in self.engine.stubs.values() if stub.key.pool.revision == revision and not stub.closed
        ]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a value."""
        async with asyncio.timeout(raw.WAIT):
            while not condition():  # noqa: ASYNC110 - counts have no event to wait for
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def routers(folder: Path, count: int = 2, **settings: object) -> AsyncIterator[Routers]:
    """Started, and at the end nothing is left of them."""
    found = Routers(folder, count, RouterSettings.model_validate(settings))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(found.engine.close)
        for router in found.routers:
            await router.start()
            stack.push_async_callback(router.stop, wait=False)
        yield found
