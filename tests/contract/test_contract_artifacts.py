"""The artifacts port, wherever the files are."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.model.errors import BackendError, NotFound
from modalnomad.model.ids import Digest
from modalnomad.ports.artifacts import Artifacts

SIZE = 3_000_000


@pytest.fixture(params=["embedded"])
def artifacts(tmp_path: Path) -> Artifacts:
    """A store of each kind, empty."""
    return EmbeddedArtifacts(tmp_path / "home")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


def damage(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as target:
        target.write(b"damaged")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_what_was_put_is_found_under_its_digest(artifacts: Artifacts, file: Path) -> None:
    digest = await artifacts.put(file)

    assert digest == sha256(file)
    assert sha256(Path(await artifacts.locate(digest))) == digest


async def test_the_copy_does_not_follow_the_original(artifacts: Artifacts, file: Path) -> None:
    digest = await artifacts.put(file)
    damage(file)

    assert sha256(Path(await artifacts.locate(digest))) == digest


async def test_the_same_content_many_times_at_once_is_one(artifacts: Artifacts, file: Path) -> None:
    digests = await asyncio.gather(*(artifacts.put(file) for _ in range(6)))

    assert len(set(digests)) == 1
    assert await artifacts.prune(()) == SIZE


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", "", "x" * 64])
async def test_unknown_digests_are_not_found(artifacts: Artifacts, digest: str) -> None:
    with pytest.raises(NotFound):
        await artifacts.locate(Digest(digest))


async def test_pruning_keeps_what_is_named_and_tells_what_it_freed(artifacts: Artifacts, tmp_path: Path) -> None:
    digests = []
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(b"x" * (number + 1) * 1000)
        digests.append(await artifacts.put(path))

    assert await artifacts.prune({digests[1]}) == 4000

    assert await artifacts.locate(digests[1])
    for gone in (digests[0], digests[2]):
        with pytest.raises(NotFound):
            await artifacts.locate(gone)
    assert await artifacts.prune({digests[1]}) == 0


async def test_pruning_an_empty_store_is_nothing(artifacts: Artifacts) -> None:
    assert await artifacts.prune(()) == 0


async def test_a_file_that_is_not_there_is_refused_and_leaves_nothing(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        await artifacts.put(tmp_path / "none")

    assert await artifacts.prune(()) == 0


async def test_a_stored_file_that_changed_is_not_given_out(artifacts: Artifacts, file: Path) -> None:
    digest = await artifacts.put(file)
    damage(Path(await artifacts.locate(digest)))

    with pytest.raises(NotFound):
        await artifacts.locate(digest)

    assert await artifacts.put(file) == digest
    assert sha256(Path(await artifacts.locate(digest))) == digest
