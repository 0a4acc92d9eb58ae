"""Pruning a cluster: what its servers keep for Apps, and the images of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from modalnomad.deploy.changing import hold_app
from modalnomad.deploy.image_admin import ImageShelf
from modalnomad.embedded.prune import DAY, forget_locks
from modalnomad.embedded.prune import put_before as put_before_here
from modalnomad.hashicorp.nomad.parents import Parents
from modalnomad.hashicorp.prune import AnonymousShelf, ArtifactShelf, JobShelf, digests_elsewhere, put_before
from modalnomad.model.ids import DEFAULT_ENVIRONMENT
from modalnomad.render.cluster import environment_of
from modalnomad.settings import Settings
from modalnomad.wiring.cluster import Cluster, open_cluster
from modalnomad.wiring.cluster_deploy import registers_nothing
from modalnomad.wiring.home import image_store
from modalnomad.wiring.pruning import Pruning


@asynccontextmanager
async def open_cluster_pruning(settings: Settings) -> AsyncIterator[Pruning]:
    """Connections end with it. Raises BackendRefused, see `home_of`."""
    async with open_cluster(settings) as cluster:
        parents = Parents(cluster.nomad, registers_nothing, cluster.next_version)

        async def since(now: float) -> float:
            here = await asyncio.to_thread(put_before_here, cluster.home, now)
            return min(here, await put_before(cluster.consul, settings.consul.prefix, now))

        yield Pruning(
            cluster.discovery,
            {
                "job": JobShelf(
                    cluster.nomad, parents, partial(hold_app, cluster.discovery), prefix=settings.consul.prefix
                ),
                "artifact": ArtifactShelf(cluster.artifacts, cluster.nomad, prefix=settings.consul.prefix),
                "image": ImageShelf(image_store(settings), settings.embedded.keep_images * DAY),
                "secret": AnonymousShelf(
                    cluster.secrets,
                    partial(environment_names, cluster),
                    partial(digests_elsewhere, cluster.nomad, settings.consul.prefix),
                ),
            },
            keep_stopped=settings.embedded.keep_stopped,
            put_before=since,
            tidy=lambda: asyncio.to_thread(forget_locks, cluster.home),
        )


async def environment_names(cluster: Cluster) -> Sequence[str]:
    """Namespaces that are environments, those of which anything is stored, and the default one. Raises BackendError."""
    records = await cluster.discovery.apps()
    known = (environment_of(name) for name in await cluster.nomad.namespaces())
    return sorted({DEFAULT_ENVIRONMENT, *(name for name in known if name), *(record.environment for record in records)})
