"""The parts of `deploy` and of everything else that changes a deployed App: all of them but those that run replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from modalnomad.deploy.build import Builder
from modalnomad.deploy.revising import Stores
from modalnomad.deploy.stage import Stage
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.engine import EmbeddedEngine
from modalnomad.embedded.keys import platform_key
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.ports.discovery import Discovery
from modalnomad.settings import Settings
from modalnomad.wiring.building import builder_of, images_of
from modalnomad.wiring.control import open_stage
from modalnomad.wiring.home import home_of
from modalnomad.wiring.records import image_store
from modalnomad.wiring.scratch import scratch_in


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployParts:
    """Builds and publishes; runs nothing."""

    settings: Settings
    builder: Builder
    discovery: Discovery
    stores: Stores

    def stage(self) -> AbstractAsyncContextManager[Stage | None]:
        """The platform that runs on this home; None: none does."""
        return open_stage(self.settings)


@asynccontextmanager
async def open_deploy(settings: Settings) -> AsyncIterator[DeployParts]:
    """Images that are built stay, whatever is pruned, until it is left."""
    home = home_of(settings)
    secrets = EmbeddedSecrets(home)
    artifacts = EmbeddedArtifacts(settings.home)
    store = image_store(settings)
    # It opens no run and starts nothing: it is asked what this machine could run.
    engine = EmbeddedEngine(
        home=settings.home,
        settings=settings.embedded,
        scaling=settings.scaling,
        secrets=secrets,
        images=store,
        artifacts=artifacts,
        platform_key=platform_key(settings.home),
    )
    images = images_of(settings, store, secrets)
    builder = builder_of(
        settings,
        engine=engine,
        secrets=secrets,
        artifacts=artifacts,
        images=images,
        ephemeral=False,
        prepares=False,
    )
    try:
        with scratch_in(home):
            yield DeployParts(
                settings=settings,
                builder=builder,
                discovery=EmbeddedDiscovery(settings.home),
                stores=Stores(artifacts=artifacts, secrets=secrets, image=store.path),
            )
    finally:
        images.close()
        await engine.close()
