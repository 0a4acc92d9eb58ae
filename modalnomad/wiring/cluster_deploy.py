"""The parts of `deploy` and of everything else that changes a deployed App, on a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from modalnomad.deploy.images import Images
from modalnomad.deploy.origin import deployer
from modalnomad.deploy.prewarming import Told
from modalnomad.deploy.revising import Stores
from modalnomad.hashicorp.bundles import NodeBundles
from modalnomad.hashicorp.consul.routers import routers
from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.hashicorp.nomad.view import View
from modalnomad.model.errors import BackendError, BackendRefused, NotFound
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.render.cluster import DEPLOYER
from modalnomad.render.nomad import Rendering
from modalnomad.settings import Settings
from modalnomad.wiring.building import builder_of
from modalnomad.wiring.cluster import Cluster, open_cluster, public_port, renderer
from modalnomad.wiring.cluster_images import cluster_images, in_containers
from modalnomad.wiring.cluster_stage import ClusterStage, open_cluster_stage
from modalnomad.wiring.deploy_parts import DeployParts, Listener
from modalnomad.wiring.home import image_store
from modalnomad.wiring.program_text import program_text
from modalnomad.wiring.scratch import scratch_in

ROUTER: Final = "router"
"""The command that serves what is deployed."""


@asynccontextmanager
async def open_cluster_deploy(settings: Settings) -> AsyncIterator[DeployParts]:
    """Images that are built stay, whatever is pruned, until it is left."""
    async with open_cluster(settings) as cluster:
        store = image_store(settings)
        images = Images(store)
        asked = await _engine(cluster)  # never opened: it watches nothing
        builder = builder_of(
            settings,
            engine=asked,
            secrets=cluster.secrets,
            artifacts=NodeBundles(cluster.artifacts),
            images=cluster_images(settings, images, cluster.artifacts),
            ephemeral=False,
            prepares=False,
            containers=in_containers(settings),
        )
        try:
            with scratch_in(cluster.home):
                yield DeployParts(
                    settings=settings,
                    builder=builder,
                    discovery=cluster.discovery,
                    stores=Stores(
                        artifacts=cluster.artifacts,
                        secrets=cluster.secrets,
                        has_image=partial(_has_image, cluster),
                    ),
                    stage=partial(_stage, cluster),
                    keep=settings.nomad.keep_versions,
                    prewarm=partial(_prewarm, cluster, asked),
                    listener=partial(_listener, cluster),
                )
        finally:
            images.close()
            await asked.close()


async def _engine(cluster: Cluster) -> NomadEngine:
    """One that registers jobs, with the platform key as it is now."""
    keys = await cluster.platform_keys()
    return NomadEngine(
        api=cluster.nomad,
        rendering=renderer(cluster, keys, deployer(), partial(program_text, cluster.artifacts)),
        version_of=cluster.next_version,
        router=DEPLOYER + deployer(),
    )


@asynccontextmanager
async def _stage(cluster: Cluster) -> AsyncIterator[ClusterStage]:
    """The key is read anew: the App is held by now, and as long as one is, no key is forgotten. One that was read
    before, the other engine's, may be gone."""
    async with open_cluster_stage(cluster, await _engine(cluster)) as stage:
        yield stage


@asynccontextmanager
async def watching_engine(cluster: Cluster) -> AsyncIterator[NomadEngine]:
    """One that registers and starts nothing: it needs no platform key. Raises BackendError: Nomad cannot be read."""
    view = View(last_words=False)  # what it shows first is all that is looked at
    async with NomadEngine(
        api=cluster.nomad, rendering=registers_nothing, version_of=cluster.next_version, view=view
    ) as engine:
        if engine.stale_since is not None:
            await cluster.nomad.jobs()  # says why
        yield engine


async def registers_nothing(revision: Revision, version: int) -> Rendering:
    """In place of what jobs are rendered with. Raises BackendRefused."""
    raise BackendRefused("nothing is registered by this command")


async def _has_image(cluster: Cluster, image: BuiltImage) -> bool:
    if image.reference is not None or image.pack is None:
        return image.reference is not None
    try:
        await cluster.artifacts.locate(image.pack)
    except NotFound:
        return False
    return True


async def _prewarm(cluster: Cluster, engine: NomadEngine, revision: Revision, told: Told) -> int:
    settings = cluster.settings
    if settings.nomad.driver == "raw_exec" and not await routers(cluster.consul, settings.consul.prefix):
        raise BackendRefused(
            "no router runs, and nodes get what they need from routers",
            "start one: modalnomad router, and deploy again",
        )
    return await engine.prewarm(revision, told)


async def _listener(cluster: Cluster, running: bool) -> Listener:
    """As a router that runs says, else as the settings do."""
    settings = cluster.settings
    try:
        found = await routers(cluster.consul, settings.consul.prefix) if running else ()
    except BackendError:
        found = ()
    if found:
        return Listener(found[0].port, found[0].tls, ROUTER)
    return Listener(public_port(settings), settings.router.tls_cert is not None, ROUTER)
