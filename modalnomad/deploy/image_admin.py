"""Housekeeping of the image store: which images go, and removing one while others build and serve beside."""

from __future__ import annotations

import asyncio
import time

from modalnomad_sdk.store import ImageStore, Pruned, StoredImage

from modalnomad.deploy.resolve import RESOLVED, Resolver
from modalnomad.model.apps import AppRecord, needed_by
from modalnomad.model.errors import BackendRefused
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.pruning import Item, NowRule, Rule, Shelf


async def all_records(discovery: Discovery) -> tuple[AppRecord, ...]:
    """Of all Apps, served or not. Raises BackendRefused as long as one cannot be read: what it needs is not known."""
    problems = await discovery.problems()
    if problems:
        raise BackendRefused(
            f"nothing that an App may need is removed, because a record cannot be read: {problems[0]}",
            "prune again once it can be",
        )
    return await discovery.apps()


class ImageShelf(Shelf):
    """Environments replicas run in. Not needed ones stay for a while after their last use: building takes long."""

    def __init__(self, store: ImageStore, unused_for: float) -> None:
        """`unused_for`: seconds."""
        self._store = store
        self._unused_for = unused_for

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says."""
        try:
            found = await asyncio.to_thread(self._store.list)
        except OSError as error:
            raise BackendRefused(f"the images in {self._store.root} cannot be looked at: {error}") from error
        return tuple(
            Item("image", image.digest, image.size, *self._fate(image, rule))
            for image in sorted(found, key=lambda image: image.digest)
        )

    def _fate(self, image: StoredImage, rule: Rule) -> tuple[bool, str]:
        if image.digest in rule.needed.images:
            return False, "a kept version needs it"
        if image.in_use:
            return False, "in use"
        if image.last_used >= min(rule.put_before, rule.now - self._unused_for):
            return False, "used a short while ago"
        return True, "no kept version needs it"

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says."""
        try:
            with self._store.claim(item.name) as got:
                # Whoever deploys holds its images until it has published: what is free now and in no record is over.
                if not got or item.name in (await rule()).needed.images:
                    return None
                freed = await asyncio.to_thread(self._store.discard, item.name)
                await asyncio.to_thread(
                    Resolver(self._store.root / RESOLVED, lambda: self._store.uv).forget, [item.name]
                )
        except OSError as error:
            raise BackendRefused(f"image {item.name[:12]} cannot be removed: {error}") from error
        return freed

    async def tidy(self) -> None:
        """As the port says."""
        try:
            await asyncio.to_thread(self._store.sweep)
        except OSError as error:
            raise BackendRefused(f"images in {self._store.root} cannot be removed: {error}") from error


async def prune_images(store: ImageStore, discovery: Discovery, *, unused_for: float = 0.0) -> Pruned:
    """Remove images that no kept version of any App needs (served or stopped, asleep or not), no process runs from, and
    nobody used for `unused_for` seconds; with them what was resolved for them. Raises BackendRefused."""

    async def rule() -> Rule:
        now = time.time()
        return Rule(needed_by(await all_records(discovery)), frozenset(), put_before=now, now=now)

    shelf = ImageShelf(store, unused_for)
    removed, busy, freed = [], [], 0
    for item in await shelf.look(await rule()):
        got = await shelf.remove(item, rule) if item.goes else None
        if got is not None:
            removed.append(item.name)
            freed += got
        elif item.goes or item.why == "in use":
            busy.append(item.name)
    await shelf.tidy()
    return Pruned(tuple(removed), tuple(busy), freed)
