"""Bundles that nodes would not unpack."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.hashicorp.bundles import MOST_ENTRIES, NodeBundles
from modalnomad.model.errors import UserError


def bundle(folder: Path, count: int) -> Path:
    path = folder / f"{count}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for number in range(count):
            tar.addfile(tarfile.TarInfo(f"f{number}"))
    return path


async def test_more_files_than_nomad_unpacks_are_refused_before_anything_is_stored(tmp_path: Path) -> None:
    kept = EmbeddedArtifacts(tmp_path / "home")

    digest = await NodeBundles(kept).put(bundle(tmp_path, MOST_ENTRIES))
    with pytest.raises(UserError, match="4096 files and folders, and Nomad unpacks 4095"):
        await NodeBundles(kept).put(bundle(tmp_path, MOST_ENTRIES + 1))

    assert list(kept.stored()) == [digest]
