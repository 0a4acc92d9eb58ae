"""The artifacts port, wherever the files are."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.model.errors import BackendError, NotFound
from modalnomad.model.ids import Digest
from modalnomad.settings import ArtifactSettings

SIZE = 3_000_000

Kind = EmbeddedArtifacts | ObjectArtifacts


@pytest.fixture(params=["embedded", "objects", "objects in a folder of their own"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """A store of each kind, empty."""
    if request.param == "embedded":
        return EmbeddedArtifacts(tmp_path / "home")
    own = "own" in request.param
    return ObjectArtifacts(ArtifactSettings(store=str(tmp_path / "own") if own else ""), tmp_path / "home")


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


def kept_at(artifacts: Kind, digest: Digest) -> Path:
    """Where it lies."""
    folder = artifacts.folder if isinstance(artifacts, ObjectArtifacts) else artifacts._folder
    assert folder is not None
    return folder / digest


async def fetched(artifacts: Kind, digest: Digest, tmp_path: Path) -> str:
    """Hash of what comes back; nothing else is left where it was written."""
    folder = tmp_path / "fetched"
    folder.mkdir(exist_ok=True)
    try:
        await artifacts.get(digest, folder / "copy")
        return sha256(folder / "copy")
    finally:
        assert {path.name for path in folder.iterdir()} <= {"copy"}
        (folder / "copy").unlink(missing_ok=True)


async def test_what_was_put_is_found_under_its_digest(artifacts: Kind, file: Path, tmp_path: Path) -> None:
    digest = await artifacts.put(file)

    assert digest == sha256(file)
    assert await fetched(artifacts, digest, tmp_path) == digest


async def test_an_empty_file_is_a_file(artifacts: Kind, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    assert await fetched(artifacts, await artifacts.put(tmp_path / "empty"), tmp_path) == hashlib.sha256().hexdigest()


async def test_hosts_are_told_where_it_is(artifacts: Kind, file: Path) -> None:
    digest = await artifacts.put(file)

    place = await artifacts.locate(digest)

    if isinstance(artifacts, ObjectArtifacts):
        assert place == f"http://127.0.0.1:8702/artifacts/{digest}"
    else:
        assert sha256(Path(place)) == digest


async def test_the_copy_does_not_follow_the_original(artifacts: Kind, file: Path, tmp_path: Path) -> None:
    digest = await artifacts.put(file)
    damage(file)

    assert await fetched(artifacts, digest, tmp_path) == digest


async def test_the_same_content_many_times_at_once_is_one(artifacts: Kind, file: Path) -> None:
    digests = await asyncio.gather(*(artifacts.put(file) for _ in range(6)))

    assert len(set(digests)) == 1
    assert await artifacts.prune(()) == SIZE


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", "", "x" * 64])
async def test_unknown_digests_are_not_found(artifacts: Kind, digest: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await artifacts.locate(Digest(digest))
    with pytest.raises(NotFound):
        await artifacts.get(Digest(digest), tmp_path / "copy")

    assert not (tmp_path / "copy").exists()


async def test_pruning_keeps_what_is_named_and_tells_what_it_freed(artifacts: Kind, tmp_path: Path) -> None:
    digests = []
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(b"x" * (number + 1) * 1000)
        digests.append(await artifacts.put(path))
    assert {digest: stored.st_size for digest, stored in artifacts.stored().items()} == dict(
        zip(digests, (1000, 2000, 3000), strict=True)
    )

    assert await artifacts.prune({digests[1]}) == 4000

    assert await artifacts.locate(digests[1])
    for gone in (digests[0], digests[2]):
        with pytest.raises(NotFound):
            await artifacts.locate(gone)
    assert await artifacts.prune({digests[1]}) == 0


async def test_what_was_put_again_meanwhile_is_not_removed(artifacts: Kind, file: Path) -> None:
    digest = await artifacts.put(file)
    os.utime(kept_at(artifacts, digest), (1000, 1000))
    assert artifacts.stored()[digest].st_mtime == 1000

    await artifacts.put(file)

    assert artifacts.remove(digest, unless_put_since=2000) == 0
    assert artifacts.remove(digest) == SIZE
    assert artifacts.remove(digest) == 0


async def test_pruning_an_empty_store_is_nothing(artifacts: Kind) -> None:
    assert await artifacts.prune(()) == 0


async def test_a_file_that_is_not_there_is_refused_and_leaves_nothing(artifacts: Kind, tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        await artifacts.put(tmp_path / "none")

    assert await artifacts.prune(()) == 0


async def test_a_stored_file_that_changed_is_not_given_out(artifacts: Kind, file: Path, tmp_path: Path) -> None:
    digest = await artifacts.put(file)
    damage(kept_at(artifacts, digest))

    with pytest.raises(NotFound):
        await fetched(artifacts, digest, tmp_path)

    assert await artifacts.put(file) == digest
    assert await fetched(artifacts, digest, tmp_path) == digest


async def test_a_folder_that_cannot_be_written_is_refused_by_name(artifacts: Kind, file: Path) -> None:
    digest = await artifacts.put(file)
    target = file.parent / "none" / "copy"

    with pytest.raises(BackendError, match=str(target)):
        await artifacts.get(digest, target)
