"""Bundles on their way to nodes: refused here where Nomad would refuse them there."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

from modalnomad.model.errors import UserError
from modalnomad.model.ids import Digest
from modalnomad.ports.artifacts import Artifacts

MOST_ENTRIES: Final = 4095
"""Files and folders: Nomad unpacks no more of an archive, unless its nodes' `artifact` block says otherwise."""


class NodeBundles(Artifacts):
    """Port `Artifacts` for bundles alone."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def put(self, file: Path) -> Digest:
        """As the port says. Raises UserError for one that nodes would not unpack."""
        count = await asyncio.to_thread(_entries, file)
        if count > MOST_ENTRIES:
            raise UserError(
                f"the program comes with {count} files and folders, and Nomad unpacks {MOST_ENTRIES} at most",
                "leave some out (ignore= of add_local_dir), or put them into the image with "
                "add_local_dir(…, copy=True)",
            )
        return await self._artifacts.put(file)

    async def locate(self, digest: Digest) -> str:
        """As the port says."""
        return await self._artifacts.locate(digest)

    async def get(self, digest: Digest, target: Path) -> None:
        """As the port says."""
        await self._artifacts.get(digest, target)

    async def prune(self, kept: Collection[Digest]) -> int:
        """As the port says."""
        return await self._artifacts.prune(kept)


def _entries(file: Path) -> int:
    with tarfile.open(file) as tar:
        return sum(1 for _ in tar)
