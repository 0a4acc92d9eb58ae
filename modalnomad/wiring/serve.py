"""The parts of `serve`: a router with an engine behind it, for Apps that live as long as this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from modalnomad.deploy.build import Builder
from modalnomad.deploy.hosts import Naming, name_function
from modalnomad.deploy.succession import OrderedEngine
from modalnomad.embedded.discovery import EphemeralDiscovery
from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.engine import Engine
from modalnomad.router.server import RouterServer
from modalnomad.settings import Settings
from modalnomad.wiring.building import builder_of, images_of, naming_of
from modalnomad.wiring.ending import Ending
from modalnomad.wiring.home import working
from modalnomad.wiring.parts import Parts, RouterPools, build, running


@dataclass(slots=True)
class ServeParts:
    """A router with an engine behind it, for Apps that live as long as this process."""

    settings: Settings
    naming: Naming
    engine: Engine
    discovery: Discovery
    builder: Builder
    router: RouterServer
    pools: RouterPools
    succession: OrderedEngine
    parts: Parts
    revisions: dict[RevisionId, Revision] = field(default_factory=dict)
    """All that were ever published."""

    def url(self, host: str) -> str:
        """Public address of a host name."""
        return self.parts.url(host)

    def ending(self) -> Ending:
        """The orderly end of everything that was published."""
        return Ending(self.router, self.pools, self.revisions, self.settings)


@asynccontextmanager
async def open_serve(settings: Settings) -> AsyncIterator[ServeParts]:
    """The parts of `serve`, the router listening. Leaving it ends every replica at once; run `ending` before for an
    orderly end. Raises BackendError: port taken, home not writable."""
    discovery = EphemeralDiscovery(settings.home)
    naming = naming_of(settings)

    def web_urls(revision: Revision) -> Mapping[str, str]:
        named, _ = name_function(revision.function, revision.app, naming, ephemeral=True)
        return {entry.endpoint.name: parts.url(entry.hosts[0]) for entry in named}

    parts = build(settings, discovery, web_urls=web_urls)
    engine, secrets, artifacts = parts.engine, parts.secrets, parts.artifacts
    images = images_of(settings, parts.images, secrets)
    builder = builder_of(settings, engine=engine, secrets=secrets, artifacts=artifacts, images=images, ephemeral=True)
    with working(settings, "serve"):
        async with running(parts):
            yield ServeParts(settings, naming, engine, discovery, builder, parts.router, parts.pools, engine, parts)
