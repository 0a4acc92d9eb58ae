"""Bundles unpacked once for all replicas, and a copy of its own for each of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Final

from modalnomad_sdk.store.archives import unpack

from modalnomad.embedded.child import run_quietly
from modalnomad.embedded.janitor import clear_unheld, remove_bundle, remove_tree
from modalnomad.embedded.store import TEMPORARY_PREFIX, FileLock, make_folder, refused
from modalnomad.model.errors import BackendRefused
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.ports.artifacts import Artifacts

COMPILE_LIMIT: Final = 120.0
"""Seconds the byte-compilation of a bundle may take."""


class Bundles:
    """`<home>/bundles/<digest>`, shared by all processes of one home: each holds a shared lock on the folders it uses,
    and whoever finds one that nobody holds may remove it."""

    def __init__(self, home: Path, artifacts: Artifacts) -> None:
        self._folder = home / "bundles"
        self._artifacts = artifacts
        self._guard = FileLock(home / "bundles.lock")
        self._serial = threading.Lock()
        self._locks: dict[Digest, FileLock] = {}
        self._users: dict[Digest, set[str]] = {}

    async def hold(self, digest: Digest, user: RevisionId) -> Path:
        """The unpacked bundle, kept until `release`. Raises BackendRefused, NotFound."""
        archive = Path(await self._artifacts.locate(digest))
        return await asyncio.to_thread(self._hold, digest, user, archive)

    def _hold(self, digest: Digest, user: RevisionId, archive: Path) -> Path:
        target = self._folder / digest
        try:
            with self._serial, self._guard:
                if not target.is_dir():
                    make_folder(self._folder)
                    _unpack(archive, target)
                if digest not in self._locks:
                    lock = FileLock(target)
                    lock.acquire(shared=True, wait=False)
                    self._locks[digest] = lock
                self._users.setdefault(digest, set()).add(user)
        except tarfile.TarError as error:
            raise BackendRefused(f"cannot unpack {archive}: {error}", "deploy the App again") from error
        except OSError as error:
            raise refused(f"unpack a bundle into {target}", error) from error
        return target

    async def release(self, user: RevisionId) -> None:
        """This revision needs its bundle no more; the folder goes with its last user on this machine."""
        await asyncio.to_thread(self._release, user)

    async def compile(self, digest: Digest, python: Path) -> None:
        """Byte-compile it, if it is held. It is kept until that is done: the compiler makes the folders it writes into,
        and what it made after the bundle was removed would pass for the bundle."""
        compiler = f"compiler of {digest}"
        try:
            if await asyncio.to_thread(self._join, digest, compiler):
                await compile_bundle(self._folder / digest, python)
        finally:
            await asyncio.to_thread(self._release, compiler)

    def _join(self, digest: Digest, user: str) -> bool:
        with self._serial:
            if digest not in self._users:
                return False
            self._users[digest].add(user)
            return True

    def _release(self, user: str) -> None:
        with self._serial, self._guard:
            for digest in [digest for digest, users in self._users.items() if user in users]:
                self._users[digest].discard(user)
                if not self._users[digest]:
                    del self._users[digest]
                    self._locks.pop(digest).release()
                    _remove_if_unused(self._folder / digest)

    def tidy(self) -> None:
        """Remove the folders nobody uses: of processes that were killed. Not for the event loop."""
        with self._serial:
            clear_unheld(str(self._folder))


def _remove_if_unused(path: Path) -> None:
    lock = FileLock(path)
    try:
        lock.acquire(wait=False)
    except OSError:
        return  # in use, or gone already
    try:
        remove_bundle(str(path))
    finally:
        lock.release()


def _unpack(archive: Path, target: Path) -> None:
    """Into a folder beside it, then renamed: a half-unpacked bundle is never used."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name[:12]}")
    try:
        temporary.mkdir(mode=0o700)
        with tarfile.open(archive) as tar:
            unpack(tar, temporary)
        temporary.rename(target)
    except BaseException:
        remove_tree(str(temporary))
        raise


async def compile_bundle(bundle: Path, python: Path) -> None:
    """Byte-compile it for this Python, in a process of its own: the code is the user's. A file that does not compile is
    left for the replica to complain about. It works inside the folder: once that is gone it can make no other in its
    place, also when it outlives us."""
    await run_quietly([str(python), "-I", "-S", "-W", "ignore", "-m", "compileall", "-q", "."], COMPILE_LIMIT, bundle)


def copy_bundle(bundle: Path, target: Path) -> None:
    """A replica's own working copy: whatever it writes there hurts nobody else. Raises OSError."""
    target.mkdir(mode=0o700)
    with os.scandir(bundle) as entries:
        for entry in entries:
            copy = target / entry.name
            if entry.is_symlink():
                copy.symlink_to(os.readlink(entry.path))
            elif entry.is_dir():
                copy_bundle(Path(entry.path), copy)
            else:
                _copy_file(entry.path, copy)


def _copy_file(source: str, target: Path) -> None:
    try:
        # With its times: Python trusts compiled code only beside a source of the same age.
        shutil.copy2(source, target)
    except FileNotFoundError:
        # The compiler, at work beside us, replaces its temporary files; nothing else ever leaves a bundle.
        if "__pycache__" not in source:
            raise
