"""Artifacts in a folder, named by their SHA-256."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from modalnomad.embedded.store import TEMPORARY_PREFIX, make_folder, sync_folder, translated
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
                if not _holds(target, digest):
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
        freed = 0
        with translated(f"tidy {self._folder}"):
            if not self._folder.is_dir():
                return 0
            for path in self._folder.iterdir():
                status = path.stat()
                half_written = path.name.startswith(TEMPORARY_PREFIX)
                if path.name in kept or (half_written and time.time() - status.st_mtime < ABANDONED_AFTER):
                    continue
                path.unlink(missing_ok=True)
                freed += status.st_size
        return freed


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
