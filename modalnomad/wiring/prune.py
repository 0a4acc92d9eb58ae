"""Pruning of the back end in use, and of a home."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modalnomad_sdk.store import ImageStore

from modalnomad.deploy.image_admin import ImageShelf
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.prune import (
    DAY,
    BundleShelf,
    LogShelf,
    SecretShelf,
    UnpackedShelf,
    forget_locks,
    put_before,
)
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.model.errors import BackendError
from modalnomad.settings import Settings
from modalnomad.wiring.home import home_of
from modalnomad.wiring.pruning import Pruned, Pruning, in_words

logger = logging.getLogger("modalnomad.prune")


def home_pruning(settings: Settings) -> Pruning:
    """Of the home. Raises BackendRefused, see `home_of`."""
    home = home_of(settings)
    return Pruning(
        EmbeddedDiscovery(home),
        {
            "bundle": BundleShelf(EmbeddedArtifacts(home)),
            "unpacked": UnpackedShelf(home),
            "image": ImageShelf(ImageStore(home / "images"), settings.embedded.keep_images * DAY),
            "secret": SecretShelf(EmbeddedSecrets(home)),
            "log": LogShelf(home),
        },
        keep_stopped=settings.embedded.keep_stopped,
        put_before=lambda now: asyncio.to_thread(put_before, home, now),
        tidy=lambda: asyncio.to_thread(forget_locks, home),
    )


@asynccontextmanager
async def open_pruning(settings: Settings) -> AsyncIterator[Pruning]:
    """Of the back end in use. Raises BackendRefused, see `home_of`."""
    if settings.backend == "hashicorp":
        from modalnomad.wiring.cluster_prune import open_cluster_pruning

        async with open_cluster_pruning(settings) as pruning:
            yield pruning
    else:
        yield await asyncio.to_thread(home_pruning, settings)


async def prune(settings: Settings) -> Pruned:
    """Remove what goes by the rules, without asking: after each deploy. Never raises for what cannot be looked at or
    removed: that stands in `problems`."""
    try:
        async with open_pruning(settings) as pruning:
            pruned = await pruning.carry_out(await pruning.plan())
    except BackendError as error:
        pruned = Pruned((), (in_words(error),))
    for item in pruned.removed:
        logger.info("pruned: %s %s (%s)", item.kind, item.name, item.why)
    return pruned
