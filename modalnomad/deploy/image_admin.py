"""Housekeeping of the image store: what `modalnomad image` shows and removes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from modalnomad_sdk.store import ImageStore, Pruned

from modalnomad.deploy.resolve import RESOLVED, Resolver
from modalnomad.model.errors import BackendRefused
from modalnomad.model.revision import Revision
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery


async def prune_images(store: ImageStore, discovery: Discovery, *, unused_for: float = 0.0) -> Pruned:
    """Remove images that no deployed App needs (asleep or not), no process runs from, and nobody used for `unused_for`
    seconds; with them what was resolved for them. Raises BackendRefused."""
    async for snapshot in discovery.watch():
        kept = needed(snapshot)
        break
    else:
        kept = frozenset()
    return await asyncio.to_thread(_prune, store, kept, unused_for)


def needed(snapshot: RouteSnapshot, more: Iterable[Revision] = ()) -> frozenset[str]:
    """Digests of the images that what is served runs in."""
    return frozenset(revision.image.digest for revision in (*snapshot.revisions.values(), *more))


def _prune(store: ImageStore, kept: frozenset[str], unused_for: float) -> Pruned:
    recent = time.time() - unused_for
    try:
        used = {image.digest for image in store.list() if image.last_used > recent} if unused_for else frozenset()
        pruned = store.prune(kept | used)
    except OSError as error:
        raise BackendRefused(f"images in {store.root} cannot be removed: {error}") from error
    Resolver(store.root / RESOLVED, lambda: store.uv).forget(pruned.removed)
    return pruned
