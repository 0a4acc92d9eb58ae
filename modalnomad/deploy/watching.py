"""Watching: which of the user's local files changed.

The operating system's notice is only a hint to look; what counts is that a file's size, time or identity differs from
the last look. So a change made while the set of watched files is being replaced is seen too, and so is one on a file
system that gives no notice, a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from watchfiles import awatch

from modalnomad.kit.tasks import Tasks

STEP = 20
"""Milliseconds without a further change that end a burst of changes."""
LONGEST_BURST = 200
"""Milliseconds after which a burst is looked at though it goes on."""
LOOK_EVERY = 1.0
"""Seconds between two looks without any notice."""
CLOCK_STEP = 0.02
"""Seconds a file's time may lie behind the clock: file systems use the kernel's coarse one."""
IGNORED = frozenset({"__pycache__", ".git", ".hg", ".svn", ".DS_Store", ".mypy_cache", ".ruff_cache", ".pytest_cache"})

Stamp = tuple[int, int, int]
"""Modification time in nanoseconds, size, inode."""


class Watcher:
    """One set of files and folders, replaceable at any time. Owns the threads that wait for notices: close it."""

    def __init__(self, paths: Iterable[str], since: float | None = None) -> None:
        """`since`: see `replace`."""
        self._hint = asyncio.Event()
        self._tasks = Tasks("watch")
        self._paths: tuple[str, ...] = ()
        self._wide = False
        self._seen: dict[str, Stamp] = {}
        self._listeners: list[asyncio.Task[None]] = []
        self._folders: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        self.replace(paths, since)

    def replace(self, paths: Iterable[str], since: float | None = None) -> None:
        """Watch these instead. Files new to the set count as seen, but for those written after `since` (Unix time):
        they may have been read before that. What changed of the others is still told."""
        known = set(self._paths)
        self._paths = tuple(sorted(set(paths)))
        fresh = look([path for path in self._paths if path not in known], wide=False)
        late = (since - CLOCK_STEP) * 1e9 if since is not None else float("inf")
        self._seen |= {path: stamp for path, stamp in fresh.items() if path not in self._seen and stamp[0] < late}
        folders = to_watch(self._paths)
        if folders != self._folders:
            self._folders = folders
            for listener in self._listeners:
                listener.cancel()
            self._listeners = [
                self._tasks.spawn(self._listen(group, recursive=recursive), "notices")
                for group, recursive in zip(folders, (False, True), strict=True)
                if group
            ]
        self._hint.set()

    def widen(self, wide: bool) -> None:
        """Also look at every Python file beside the watched ones: what a broken program lacks may be written there."""
        if wide and not self._wide:
            self._seen = look(self._paths, wide=True) | self._seen
        self._wide = wide

    async def changed(self) -> frozenset[str]:
        """Wait for a change; the paths that appeared, vanished or differ since the last answer."""
        while True:
            watched = self._paths, self._wide
            found = await asyncio.to_thread(look, self._paths, wide=self._wide)
            if watched != (self._paths, self._wide):
                continue  # what was not looked at would pass for gone, and then for new
            paths = {path for path in found.keys() | self._seen.keys() if found.get(path) != self._seen.get(path)}
            if not self._wide:
                known = set(self._paths)
                paths = {path for path in paths if path in known or _inside(path, known)}
            self._seen = found
            if paths:
                return frozenset(paths)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._hint.wait()
            self._hint.clear()

    async def _listen(self, folders: frozenset[str], *, recursive: bool) -> None:
        present = await asyncio.to_thread(lambda: [folder for folder in folders if Path(folder).is_dir()])
        if not present:
            return
        # Without notices (no inotify watches left, an odd file system) looking every second is what remains.
        with contextlib.suppress(OSError):
            async for _ in _notices(present, recursive=recursive):
                self._hint.set()

    async def close(self) -> None:
        """Stop listening."""
        await self._tasks.close()


def _notices(folders: list[str], *, recursive: bool) -> AsyncIterator[object]:
    return awatch(
        *folders,
        watch_filter=lambda _, path: Path(path).name not in IGNORED,
        recursive=recursive,
        step=STEP,
        debounce=LONGEST_BURST,
        rust_timeout=10_000,
        force_polling=False,
        ignore_permission_denied=True,
    )


def to_watch(paths: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Folders to listen on: those that hold watched files, alone (an editor replaces a file by renaming, so the file
    itself cannot be listened on), and watched folders with all below."""
    alone: set[str] = set()
    deep: set[str] = set()
    for path in paths:
        if os.path.isdir(path):
            deep.add(path)
        else:
            alone.add(os.path.dirname(path))
    return frozenset(alone - deep), frozenset(deep)


def look(paths: Iterable[str], *, wide: bool) -> dict[str, Stamp]:
    """Stamp of every file there is among the paths and in the folders among them."""
    found: dict[str, Stamp] = {}
    folders = set()
    for path in paths:
        if os.path.isdir(path):
            for base, below, files in os.walk(path):
                below[:] = [name for name in below if name not in IGNORED]
                _stamp(found, (os.path.join(base, name) for name in files if name not in IGNORED))
        else:
            _stamp(found, [path])
            folders.add(os.path.dirname(path))
    if wide:
        for folder in folders:
            with contextlib.suppress(OSError):
                _stamp(found, (entry.path for entry in os.scandir(folder) if entry.name.endswith(".py")))
    return found


def _stamp(found: dict[str, Stamp], files: Iterable[str]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            stat = os.stat(file)
            found[file] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _inside(path: str, folders: set[str]) -> bool:
    return any(str(parent) in folders for parent in Path(path).parents)
