"""Following deploys: each change of the records becomes routes, direct ports, and a list of what is served."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from modalnomad.deploy.hosts import label_of
from modalnomad.kit.watch import Cell
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Endpoint
from modalnomad.model.routes import Route, RouteSnapshot
from modalnomad.wiring.doors import Doors
from modalnomad.wiring.parts import Parts
from modalnomad.wiring.revisions import Revisions
from modalnomad.wiring.shared import SharedDiscovery


@dataclass(frozen=True, slots=True)
class ServedEndpoint:
    """One endpoint that is served."""

    environment: str
    app: str
    endpoint: Endpoint
    label: str
    host: str
    url: str
    direct_url: str
    """Empty: there is no port for it."""
    custom_urls: tuple[str, ...]
    revision: RevisionId


@dataclass(frozen=True, slots=True)
class Served:
    """What requests are led to at one moment."""

    snapshot: RouteSnapshot = field(default_factory=RouteSnapshot)
    endpoints: Mapping[str, ServedEndpoint] = field(default_factory=dict)
    """By the host that is shown, in the order of the records."""


class Following:
    """`served` is None until the first records have been read."""

    def __init__(self, parts: Parts, discovery: SharedDiscovery, revisions: Revisions, doors: Doors) -> None:
        self._parts = parts
        self._discovery = discovery
        self._revisions = revisions
        self._doors = doors
        self.served: Cell[Served | None] = Cell(None)

    async def run(self) -> None:
        """Until cancelled."""
        async with aclosing(self._discovery.watch()) as snapshots:  # type: ignore[type-var]
            async for snapshot in snapshots:
                await self._follow(snapshot)

    async def _follow(self, snapshot: RouteSnapshot) -> None:
        await self._parts.router.feed.routes_index.until(lambda index: index >= snapshot.index)
        self._revisions.routed()
        routed = {match.route.hosts[0]: match.route for match in self._parts.router.router.table.matches()}
        await self._doors.follow(routed)
        self.served.set(Served(snapshot, {host: self._shown(host, route) for host, route in routed.items()}))

    def _shown(self, host: str, route: Route) -> ServedEndpoint:
        port = self._doors.ports.get(host)
        label, _ = label_of(route.endpoint, route.app, ephemeral=False)
        return ServedEndpoint(
            environment=route.environment,
            app=route.app,
            endpoint=route.endpoint,
            label=label,
            host=host,
            url=self._parts.url(host),
            direct_url=f"http://127.0.0.1:{port}" if port else "",
            custom_urls=tuple(self._parts.url(custom) for custom in route.hosts[1:]),
            revision=route.revision,
        )
