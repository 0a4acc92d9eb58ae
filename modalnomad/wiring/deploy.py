"""The parts of `deploy` and of everything else that changes a deployed App, of the back end in use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from modalnomad.deploy.revising import Stores
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.engine import EmbeddedEngine
from modalnomad.embedded.keys import platform_key
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.model.revision import BuiltImage
from modalnomad.settings import Settings
from modalnomad.wiring.building import builder_of, images_of
from modalnomad.wiring.control import open_stage
from modalnomad.wiring.deploy_parts import DeployParts
from modalnomad.wiring.home import home_of, image_store
from modalnomad.wiring.running import listener
from modalnomad.wiring.scratch import scratch_in


@asynccontextmanager
async def open_deploy(settings: Settings) -> AsyncIterator[DeployParts]:
    """Images that are built stay, whatever is pruned, until it is left."""
    if settings.backend == "hashicorp":
        from modalnomad.wiring.cluster_deploy import open_cluster_deploy

        async with open_cluster_deploy(settings) as parts:
            yield parts
    else:
        async with _open_embedded(settings) as parts:
            yield parts


@asynccontextmanager
async def _open_embedded(settings: Settings) -> AsyncIterator[DeployParts]:
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

    async def has_image(image: BuiltImage) -> bool:
        return store.path(image.digest) is not None

    try:
        with scratch_in(home):
            yield DeployParts(
                settings=settings,
                builder=builder,
                discovery=EmbeddedDiscovery(settings.home),
                stores=Stores(artifacts=artifacts, secrets=secrets, has_image=has_image),
                stage=partial(open_stage, settings),
                keep=settings.embedded.keep_versions,
                listener=partial(listener, settings),
            )
    finally:
        images.close()
        await engine.close()
