"""Artifacts in a folder, named by their SHA-256."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from modalnomad.embedded.store import TEMPORARY_PREFIX, FileLock, make_folder, sync_folder, translated
from modalnomad.model.errors import NotFound
from modalnomad.model.ids import Digest
from modalnomad.ports.artifacts import Artifacts

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
CHUNK: Final = 1 << 20
ABANDONED_AFTER: Final = 3600.0
"""Seconds after which a half-written file is taken to be a dead process's."""


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
                digest = _copy(file, temporary)
                target = self._folder / digest
                there = _holds(target, digest)
                with FileLock(self._folder):
                    if there and target.exists():
                        # Noted as just used, so that it is not pruned before the deploy that needs it is through.
                        os.utime(target)
                    else:
                        temporary.replace(target)
                        sync_folder(self._folder)
            finally:
                temporary.unlink(missing_ok=True)
        return digest

    async def locate(self, digest: Digest) -> str:
        """The path of the file. Raises NotFound, also for one whose content is no longer what its name says."""
        path = self._folder / digest
        with translated(f"read {path}"):
            known = DIGEST.fullmatch(digest) is not None
            if known and await asyncio.to_thread(_holds, path, digest):
                return str(path)
        raise NotFound(f"there is no artifact {digest} in {self._folder}", "deploy the App again")

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
        """Remove copies that a process which was killed left half-way. Raises BackendRefused."""
        with translated(f"tidy {self._folder}"):
            for path in self._folder.glob(f"{TEMPORARY_PREFIX}*"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime >= ABANDONED_AFTER:
                        path.unlink()


def _copy(source: Path, target: Path) -> Digest:
    hasher = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    with os.fdopen(descriptor, "wb") as writer, source.open("rb") as reader:
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
