"""A whole router with stub replicas and its admin listener, and what it shows there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from modalnomad.kit.watch import Cell
from modalnomad.model.routes import RouteSnapshot, Token
from modalnomad.ports.discovery import Discovery
from modalnomad.router.admin import Admin
from modalnomad.router.server import RouterServer
from modalnomad.router.table import Match
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support import raw
from tests.support.stub_replicas import PLATFORM_KEY, StubEngine, make_match


class StubDiscovery:
    """Routes as the test sets them."""

    def __init__(self, matches: Sequence[Match], tokens: Sequence[Token] = ()) -> None:
        self._tokens = tuple(tokens)
        self.cell = Cell(self._snapshot(matches, 1))

    def _snapshot(self, matches: Sequence[Match], index: int) -> RouteSnapshot:
        revisions = {match.revision.id: match.revision for match in matches}
        return RouteSnapshot(tuple(match.route for match in matches), revisions, self._tokens, index=index)

    def serve(self, *matches: Match) -> None:
        """These from now on."""
        self.cell.set(self._snapshot(matches, self.cell.value.index + 1))

    async def watch(self) -> AsyncIterator[RouteSnapshot]:
        """See Discovery."""
        async for snapshot in self.cell.watch():
            yield snapshot


@dataclass
class Watched:
    """A running router."""

    router: RouterServer
    engine: StubEngine
    discovery: StubDiscovery
    admin: Admin

    async def page(self, path: str, *lines: str, host: str = "localhost") -> raw.Response:
        """Of the admin listener."""
        async with raw.client(self.admin.port) as client:
            return await client.request(raw.get(path, host, *lines))

    async def json(self, path: str) -> Any:
        """A page's content."""
        return json.loads((await self.page(path)).body)

    async def metrics(self) -> Metrics:
        """One scrape, as Prometheus reads it."""
        return Metrics((await self.page("/metrics")).body.decode())

    async def until(self, wanted: Callable[[Metrics], bool]) -> Metrics:
        """Scrape until it shows what is wanted."""
        async with asyncio.timeout(raw.WAIT):
            while not wanted(found := await self.metrics()):  # noqa: ASYNC110 - a scrape has no event
                await asyncio.sleep(0.02)
        return found


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def get(self, name: str, **labels: str) -> float | None:
        """The one sample with these labels among its own; None: there is none."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) < 2, (name, labels, found)
        return found[0] if found else None


@contextlib.asynccontextmanager
async def watched(
    folder: Path,
    *matches: Match,
    tokens: Sequence[Token] = (),
    scaling: ScalingSettings | None = None,
    lost_lines: Callable[[], int] | None = None,
    **settings: object,
) -> AsyncIterator[Watched]:
    """Endpoints `a` and `b`, unless others are given; nothing may be left behind."""
    engine = StubEngine(folder)
    discovery = StubDiscovery(
        matches or (make_match(tag="a", host="a.localhost"), make_match(tag="b", host="b.localhost")), tokens
    )
    router = RouterServer(
        engine=engine,
        discovery=cast(Discovery, discovery),
        settings=RouterSettings.model_validate(settings),
        scaling=scaling or ScalingSettings(),
        platform_key=PLATFORM_KEY,
    )
    admin = Admin(router, "127.0.0.1", 0, lost_lines=lost_lines)
    await admin.start()
    try:
        await router.start()
        yield Watched(router, engine, discovery, admin)
    finally:
        async with asyncio.timeout(raw.WAIT):
            await router.stop(wait=False)
            await admin.close()
            await engine.close()
    assert router.router.gate.guests == 0
    assert router.router.gate.tasks.running == 0
