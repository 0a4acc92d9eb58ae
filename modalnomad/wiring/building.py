"""What turns programs into revisions on this machine, for every command that does."""

from __future__ import annotations

from modalnomad_sdk.store import ImageStore

from modalnomad.deploy.build import Builder, ImageBuilder
from modalnomad.deploy.bundle import pack
from modalnomad.deploy.hosts import Naming
from modalnomad.deploy.images import Images
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.ports.artifacts import Artifacts
from modalnomad.ports.engine import Engine
from modalnomad.ports.secrets import Secrets
from modalnomad.settings import Settings


def naming_of(settings: Settings) -> Naming:
    """What host names of the settings' environment are made from."""
    return Naming(settings.router.domain, settings.router.workspace, settings.environment)


def images_of(settings: Settings, store: ImageStore, secrets: EmbeddedSecrets) -> Images:
    """Builds images with the secrets of the settings' environment."""
    return Images(store, lambda refs: secrets.resolve(refs, settings.environment))


def builder_of(
    settings: Settings,
    *,
    engine: Engine,
    secrets: Secrets,
    artifacts: Artifacts,
    images: ImageBuilder,
    ephemeral: bool,
    prepares: bool = True,
    containers: bool = False,
) -> Builder:
    """For the settings' environment."""
    return Builder(
        engine=engine,
        secrets=secrets,
        images=images,
        bundles=lambda description, functions: pack(description, functions, artifacts),
        naming=naming_of(settings),
        ephemeral=ephemeral,
        prepares=prepares,
        containers=containers,
    )
