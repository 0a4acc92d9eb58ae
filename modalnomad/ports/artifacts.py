"""Artifacts: bundles and other files, named by their content."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from modalnomad.model.ids import Digest


class Artifacts(Protocol):
    """Content-addressed files. What was put is found unchanged, or not at all."""

    async def put(self, file: Path) -> Digest:
        """Store a copy, atomically; the same content twice is stored once. Returns its SHA-256."""

    async def locate(self, digest: Digest) -> str:
        """A path or URL replicas' hosts can read it at. Raises NotFound."""

    async def get(self, digest: Digest, target: Path) -> None:
        """Write a copy to `target`, which is there afterwards, whole, or not at all. Raises NotFound, BackendError."""

    async def prune(self, kept: Collection[Digest]) -> int:
        """Remove everything else; bytes freed."""
