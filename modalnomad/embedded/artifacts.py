"""Artifacts in a folder, named by their SHA-256."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from modalnomad.embedded.store import TEMPORARY_PREFIX, FileLock, make_folder, sync_folder, translated
from modalnomad.model.errors import NotFound
from modalnomad.model.ids import Digest
from modalnomad.ports.artifacts import Artifacts

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
CHUNK: Final = 1 << 20


class EmbeddedArtifacts(Artifacts):
    """Port `Artifacts` on `<home>/artifacts`. Files are read-only once they are in place."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "artifacts"

    async def put(self, file: Path) -> Digest:
        """Store a copy, atomically; the same content twice is stored once. Returns its SHA-256."""
        return await asyncio.to_thread(self._put, file)

    def _put(self, file: Path) -> Digest:
        with translated(f"store {file} in {self._folder}"):
            make_folder(self._folder)
            temporary = self._folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
            try:
                with self._half_written(temporary) as writer:
                    digest = _copy(file, writer)
                    self._put_in_place(temporary, digest)
            finally:
                temporary.unlink(missing_ok=True)
        return digest

    def _half_written(self, path: Path) -> BinaryIO:
        """A new file that is locked as long as it is open: the locks of dead processes' ones are free."""
        with FileLock(self._folder):
            self._clear_leftovers()
            writer = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400), "wb")
            try:
                fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                writer.close()
                raise
            return writer

    def _put_in_place(self, temporary: Path, digest: Digest) -> None:
        target = self._folder / digest
        there = _holds(target, digest)
        with FileLock(self._folder):
            if there and target.exists():
                # Noted as just used, so that it is not pruned before the deploy that needs it is through.
                os.utime(target)
            else:
                temporary.replace(target)
                sync_folder(self._folder)

    async def locate(self, digest: Digest) -> str:
        """The path of the file. Raises NotFound, also for one whose content is no longer what its name says."""
        path = self._folder / digest
        with translated(f"read {path}"):
            known = DIGEST.fullmatch(digest) is not None
            if known and await asyncio.to_thread(_holds, path, digest):
                return str(path)
        raise NotFound(f"there is no artifact {digest} in {self._folder}", "deploy the App again")

    async def get(self, digest: Digest, target: Path) -> None:
        """Write a copy to `target`, whole or not at all. Raises NotFound, BackendRefused."""
        source = await self.locate(digest)
        with translated(f"write {target}"):
            await asyncio.to_thread(shutil.copyfile, source, target)

    async def prune(self, kept: Collection[Digest]) -> int:
        """Remove everything else; bytes freed."""
        return await asyncio.to_thread(self._prune, frozenset(kept))

    def _prune(self, kept: frozenset[Digest]) -> int:
        found = self.stored()
        freed = sum(self.remove(digest) for digest in found if digest not in kept)
        self.tidy()
        return freed

    # --- not for the event loop ------------------------------------------------------------------------------

    def stored(self) -> dict[Digest, os.stat_result]:
        """Everything that is here: `st_size`, and in `st_mtime` when it was last put. Raises BackendRefused."""
        found = {}
        with translated(f"read {self._folder}"):
            for path in self._folder.iterdir() if self._folder.is_dir() else ():
                if DIGEST.fullmatch(path.name):
                    with suppress(FileNotFoundError):
                        found[Digest(path.name)] = path.stat()
        return found

    def remove(self, digest: Digest, *, unless_put_since: float = math.inf) -> int:
        """Bytes freed; 0: gone already, or put again at that time (Unix) or later. Raises BackendRefused."""
        path = self._folder / digest
        with translated(f"remove {path}"), FileLock(self._folder):
            try:
                status = path.stat()
                if status.st_mtime >= unless_put_since:
                    return 0
                path.unlink()
            except FileNotFoundError:
                return 0
        return status.st_size

    def tidy(self) -> None:
        """Remove copies that killed processes left half-way. Raises BackendRefused."""
        with translated(f"tidy {self._folder}"):
            if self._folder.is_dir():
                with FileLock(self._folder):
                    self._clear_leftovers()

    def _clear_leftovers(self) -> None:
        """The folder's lock is held: no new one appears meanwhile."""
        for path in self._folder.glob(f"{TEMPORARY_PREFIX}*"):
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    continue  # somebody is writing it
                finally:
                    os.close(descriptor)


def _copy(source: Path, writer: BinaryIO) -> Digest:
    hasher = hashlib.sha256()
    with source.open("rb") as reader:
        while chunk := reader.read(CHUNK):
            hasher.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return Digest(hasher.hexdigest())


def _holds(path: Path, digest: str) -> bool:
    """Is the file there, with the content its name says?"""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False
