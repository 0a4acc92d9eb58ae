"""Who makes a cluster's images, as its driver needs them."""

from __future__ import annotations

import os

from modalnomad.deploy.build import ImageBuilder
from modalnomad.deploy.container_recipes import Recipes
from modalnomad.deploy.images import Images
from modalnomad.deploy.resolve import RESOLVED, Resolver
from modalnomad.hashicorp.packs import ClusterImages
from modalnomad.hashicorp.sdk_archive import sdk_files
from modalnomad.ports.artifacts import Artifacts
from modalnomad.settings import Settings


def in_containers(settings: Settings) -> bool:
    """Replicas run in some."""
    return settings.nomad.driver == "docker"


def cluster_images(settings: Settings, images: Images, artifacts: Artifacts) -> ImageBuilder:
    """`images` are this machine's."""
    if not in_containers(settings):
        return ClusterImages(images, artifacts)
    # Only here: importing the docker SDK takes longer than most commands.
    from modalnomad.hashicorp.docker.engine import DockerEngine
    from modalnomad.hashicorp.docker.images import DockerImages

    resolver = Resolver(images.store.root / RESOLVED, lambda: images.store.uv)
    return DockerImages(
        settings.docker,
        Recipes(resolver, environment=os.environ),
        DockerEngine(),
        sdk=sdk_files(),
        environment=os.environ,
    )
