"""Artifacts in a bucket, by the API that object storage speaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modalnomad.hashicorp.artifacts import ObjectArtifacts, nodes_url
from modalnomad.model.errors import BackendRefused, NotFound, UserError
from modalnomad.model.ids import Digest
from modalnomad.settings import ArtifactSettings
from tests.support.fakes.bucket import FakeBucket

STORE = ArtifactSettings(store="s3://bucket/some/folder")


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeBucket]:
    async with FakeBucket() as opened:
        for name, value in opened.environment.items():
            monkeypatch.setenv(name, value)
        yield opened


@pytest.mark.parametrize("size", [0, 5, 20_000_000])
async def test_what_was_put_comes_back(bucket: FakeBucket, tmp_path: Path, size: int) -> None:
    artifacts = ObjectArtifacts(STORE, tmp_path / "home")
    (tmp_path / "file").write_bytes(os.urandom(size))

    digest = await artifacts.put(tmp_path / "file")

    assert list(bucket.objects) == [f"some/folder/{digest}"]
    await artifacts.get(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()
    stored = await asyncio.to_thread(artifacts.stored)
    assert {name: found.st_size for name, found in stored.items()} == {digest: size}
    assert await artifacts.prune(()) == size
    assert bucket.objects == {}
    assert not (tmp_path / "home").exists(), "nothing is kept here"


async def test_a_bucket_that_refuses_is_said_without_the_credentials(bucket: FakeBucket, tmp_path: Path) -> None:
    artifacts = ObjectArtifacts(STORE, tmp_path / "home")
    (tmp_path / "file").write_bytes(b"x")
    bucket.status = 403

    with pytest.raises(BackendRefused, match="s3://bucket/some/folder") as refused:
        await artifacts.put(tmp_path / "file")

    told = f"{refused.value.message} {refused.value.hint}"
    assert "403" in told
    assert "very-secret" not in told
    assert "Signature" not in told


async def test_what_is_not_there_is_not_found(bucket: FakeBucket, tmp_path: Path) -> None:
    artifacts = ObjectArtifacts(STORE, tmp_path / "home")

    with pytest.raises(NotFound, match="no artifact"):
        await artifacts.get(Digest("0" * 64), tmp_path / "copy")


def test_only_stores_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ftp://x"):
        ObjectArtifacts(ArtifactSettings(store="ftp://x/y"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (ArtifactSettings(), "http://127.0.0.1:8702"),
        (ArtifactSettings(host="::1"), "http://[::1]:8702"),
        (ArtifactSettings(host="0.0.0.0", url="https://router.internal/"), "https://router.internal"),
    ],
)
def test_where_nodes_read(settings: ArtifactSettings, url: str) -> None:
    assert nodes_url(settings) == url


@pytest.mark.parametrize("settings", [ArtifactSettings(host="0.0.0.0"), ArtifactSettings(port=0)])
def test_an_address_that_says_nothing_is_refused(settings: ArtifactSettings) -> None:
    with pytest.raises(UserError, match=r"artifacts\.host"):
        nodes_url(settings)
