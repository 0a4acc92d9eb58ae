"""What a home gathers over the years, and which of it goes.

The rules: a stopped App goes some time after it was stopped; what kept versions need stays, and so does whatever was
stored or used since the oldest deploy, `serve` or `run` that is under way began, at least for an hour.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.janitor import remove_bundle, remove_tree
from modalnomad.embedded.log_segments import app_named, logs_folder
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.embedded.store import FileLock, held_since, translated
from modalnomad.model.apps import AppRecord
from modalnomad.model.ids import Digest
from modalnomad.ports.pruning import Item, NowRule, Rule, Shelf, fate

YOUNG: Final = 3600.0
"""Seconds for which nothing that was just stored goes, whoever stored it."""
WORKING: Final = ("deploy-", "serve-", "run-")
"""Beginnings of the names of locks whose holders store things before a record says that they are needed."""
DAY: Final = 86400.0
USED: Final = "in use"


def put_before(home: Path, now: float) -> float:
    """What `Rule.put_before` is now. Ask before the records are read: a deploy that ends in between has published.
    Raises BackendRefused."""
    with translated(f"read {home / 'locks'}"):
        held = held_since(home / "locks")
    return min([now - YOUNG, *(since for name, since in held.items() if name.startswith(WORKING))])


def forget_locks(home: Path) -> None:
    """Remove the lock files of processes that are gone: their names are not used again. Raises BackendRefused."""
    folder = home / "locks"
    if not folder.is_dir():
        return
    with translated(f"tidy {folder}"), FileLock(folder):  # as `held_since`
        for path in folder.glob("*.lock"):
            if path.name.startswith(WORKING):
                lock = FileLock(path)
                with suppress(BlockingIOError):
                    lock.acquire(wait=False)
                    path.unlink(missing_ok=True)
                lock.release()


def outstayed(record: AppRecord, now: float, days: float) -> bool:
    """Is it stopped for longer than that? 0 days: never too long."""
    return bool(days) and record.stopped_at is not None and now - record.stopped_at > days * DAY


class BundleShelf(Shelf):
    """Archives of the users' source."""

    def __init__(self, artifacts: EmbeddedArtifacts) -> None:
        self._artifacts = artifacts

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says."""
        found = await asyncio.to_thread(self._artifacts.stored)
        return tuple(
            Item("bundle", digest, status.st_size, *fate(digest in rule.needed.bundles, status.st_mtime, rule))
            for digest, status in sorted(found.items())
        )

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says."""
        now = await rule()
        digest = Digest(item.name)
        if digest in now.needed.bundles:
            return None
        freed = await asyncio.to_thread(self._artifacts.remove, digest, unless_put_since=now.put_before)
        return freed or None

    async def tidy(self) -> None:
        """As the port says."""
        await asyncio.to_thread(self._artifacts.tidy)


class SecretShelf(Shelf):
    """Values of `Secret.from_dict`. Named secrets go only with `secret delete`."""

    def __init__(self, secrets: EmbeddedSecrets) -> None:
        self._secrets = secrets

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says."""
        found = await asyncio.to_thread(self._secrets.anonymous)
        return tuple(
            Item(
                "secret",
                f"of Secret.from_dict, {digest[:12]}",
                status.st_size,
                *fate((environment, digest) in rule.needed.anonymous, status.st_mtime, rule),
                environment,
                digest,
            )
            for (environment, digest), status in sorted(found.items())
        )

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says."""
        now = await rule()
        if (item.environment, item.key) in now.needed.anonymous:
            return None
        remove = self._secrets.remove_anonymous
        freed = await asyncio.to_thread(remove, item.key, item.environment, unless_used_since=now.put_before)
        return freed or None


class UnpackedShelf(Shelf):
    """Bundles unpacked for replicas: they go with their last user, but for what killed processes left."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "bundles"
        self._guard = FileLock(home / "bundles.lock")

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> tuple[Item, ...]:
        with translated(f"read {self._folder}"):
            if not self._folder.is_dir():
                return ()
            paths = sorted(self._folder.iterdir())
            with self._guard:
                free = {path for path in paths if self._is_free(path)}
            return tuple(
                Item(
                    "unpacked",
                    path.name,
                    _tree_size(path),
                    path in free,
                    "no process uses it" if path in free else USED,
                )
                for path in paths
            )

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says."""
        return await asyncio.to_thread(self._remove, self._folder / item.name, item.size)

    def _remove(self, path: Path, size: int) -> int | None:
        # Under the guard nobody begins to use it.
        with translated(f"remove {path}"), self._guard:
            return size if self._is_free(path) and remove_bundle(str(path)) else None

    def _is_free(self, path: Path) -> bool:
        lock = FileLock(path)
        try:
            lock.acquire(wait=False)
        except (BlockingIOError, FileNotFoundError):
            return False
        lock.release()
        return True


class LogShelf(Shelf):
    """What the replicas of Apps wrote that are no longer known. Those of known Apps have limits of their own."""

    def __init__(self, home: Path) -> None:
        self._folder = logs_folder(home)

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says."""
        return await asyncio.to_thread(self._look, rule)

    def _look(self, rule: Rule) -> tuple[Item, ...]:
        found = []
        with translated(f"read {self._folder}"):
            for environment in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
                for folder in sorted(environment.iterdir()) if environment.is_dir() else ():
                    app = app_named(folder.name)
                    kept = (environment.name, app) in rule.apps
                    goes, why = (
                        (False, "its limits are in the settings") if kept else fate(False, _newest(folder), rule)
                    )
                    found.append(Item("log", app, _tree_size(folder), goes, why, environment.name, str(folder)))
        return tuple(found)

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says."""
        now = await rule()
        folder = Path(item.key)
        if (item.environment, item.name) in now.apps or await asyncio.to_thread(_newest, folder) >= now.put_before:
            return None
        return item.size if await asyncio.to_thread(remove_tree, str(folder)) else None


def _files(path: Path) -> Iterator[os.stat_result]:
    """Of the tree; what goes away meanwhile is left out."""
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                yield os.lstat(os.path.join(folder, name))


def _tree_size(path: Path) -> int:
    return sum(status.st_size for status in _files(path))


def _newest(path: Path) -> float:
    """When anything in it was last written; 0: nothing is in it."""
    return max((status.st_mtime for status in _files(path)), default=0.0)
