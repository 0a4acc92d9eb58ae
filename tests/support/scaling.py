"""A whole router in front of small replicas, with time that moves when the test says so: for tests of scaling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from modalnomad.kit.watch import Cell
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import ReplicaKey
from modalnomad.model.routes import RouteSnapshot, ScalingOverride
from modalnomad.router.load import Load
from modalnomad.router.server import RouterServer
from modalnomad.router.table import Match
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support import raw
from tests.support.clock import ManualClock
from tests.support.router import until
from tests.support.stub_replicas import PLATFORM_KEY, StubEngine, StubReplica

LOOK = 0.01
"""Seconds (real ones) between two looks of the scaler."""


class StubDiscovery:
    """Serves what the test says."""

    def __init__(self) -> None:
        self.cell = Cell(RouteSnapshot())

    async def watch(self) -> AsyncIterator[RouteSnapshot]:
        """See Discovery."""
        async for snapshot in self.cell.watch():
            yield snapshot


class Scaled:
    """See the module. Replicas are ready at once, end when drained, and answer while `engine.open` is set."""

    def __init__(self, folder: Path, settings: RouterSettings, scaling: ScalingSettings) -> None:
        self.clock = ManualClock()
        self.engine = StubEngine(folder)
        self.engine.obedient = True
        self.discovery = StubDiscovery()
        self.router = RouterServer(
            engine=self.engine,
            discovery=self.discovery,  # type: ignore[arg-type]  # all the router asks of it
            settings=settings,
            scaling=scaling,
            platform_key=PLATFORM_KEY,
            clock=self.clock,
        )
        self.looks = 0
        look = self.router.scaler.look

        def counted() -> None:
            look()
            self.looks += 1

        self.router.scaler.look = counted  # type: ignore[method-assign]

    async def serve(
        self,
        *matches: Match,
        overrides: Mapping[RevisionId, ScalingOverride] | None = None,
        unrouted: tuple[Match, ...] = (),
    ) -> None:
        """From now on these; returns when the router knows."""
        index = self.discovery.cell.value.index + 1
        self.discovery.cell.set(
            RouteSnapshot(
                tuple(match.route for match in matches),
                {match.revision.id: match.revision for match in (*matches, *unrouted)},
                overrides=dict(overrides or {}),
                index=index,
            )
        )
        await self.router.feed.routes_index.until(lambda found: found >= index)

    async def ask(self, match: Match, path: str = "/") -> raw.Response:
        """One request, on a connection of its own."""
        async with raw.client(self.router.port) as client:
            return await client.request(raw.get(path, match.route.hosts[0]))

    @contextlib.asynccontextmanager
    async def held(
        self, match: Match, count: int = 1, path: str = "/", *, leased: int | None = None
    ) -> AsyncIterator[None]:
        """That many requests more are on replicas (`leased` of them; the others wait), until the block ends."""
        self.engine.open.clear()
        before, arrived = self.load(match), sum(stub.running for stub in self.running(match))
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(raw.client(self.router.port)) for _ in range(count)]
            for client in clients:
                await client.send(raw.get(path, match.route.hosts[0]))
            placed = count if leased is None else leased
            await until(lambda: self.load(match).running == before.running + placed)
            await until(lambda: self.load(match).waiting == before.waiting + count - placed)
            await until(lambda: sum(stub.running for stub in self.running(match)) == arrived + placed)
            await self.looked()
            try:
                yield
            finally:
                self.engine.open.set()
                answers = [await client.response() for client in clients]
                assert {answer.status for answer in answers} == {200}
        await until(lambda: self.load(match).running == 0)

    async def looked(self) -> None:
        """The scaler has looked at everything as it is now: what it wants to go is counted as leaving."""
        seen = self.looks
        await until(lambda: self.looks > seen + 1)

    async def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)
        await self.looked()

    def load(self, match: Match) -> Load:
        """Of the match's revision."""
        return self.router.load(match.revision.id)

    def numbers(self, match: Match) -> list[int]:
        """Of the replicas that run, with those that leave."""
        return sorted(stub.key.number for stub in self.running(match))

    def running(self, match: Match) -> list[StubReplica]:
        """Replicas that have not ended."""
        stubs = self.engine.stubs.values()
        return [stub for stub in stubs if stub.key.pool.revision == match.revision.id and not stub.closed]

    def reasons(self, match: Match) -> list[str]:
        """Why replicas were started, in order."""
        return [why for key, why in self.engine.reasons.items() if key.pool.revision == match.revision.id]

    def replica(self, key: ReplicaKey) -> StubReplica:
        """By its key."""
        return self.engine.stubs[key]


@contextlib.asynccontextmanager
async def scaled(
    folder: Path, *, settings: RouterSettings | None = None, scaling: ScalingSettings | None = None
) -> AsyncIterator[Scaled]:
    """Started, and at the end nothing is left of it."""
    found = Scaled(folder, settings or RouterSettings(), scaling or ScalingSettings(interval=LOOK))
    await found.router.start()
    try:
        yield found
    finally:
        async with asyncio.timeout(raw.WAIT):
            await found.router.stop(wait=False)
            await found.engine.close()
    assert found.router.router.gate.guests == 0
