"""Artifacts in a bucket, by the API that object storage speaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from modalnomad.hashicorp.artifacts import LARGE, ObjectArtifacts, nodes_url
from modalnomad.model.errors import BackendRefused, NotFound, UserError
from modalnomad.model.ids import Digest
from modalnomad.settings import ArtifactSettings
from tests.support import objects
from tests.support.fakes.bucket import BAD_KEY, FakeBucket

STORE = ArtifactSettings(store="s3://bucket/some/folder")
UNKNOWN = Digest("0" * 64)


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


def asked(artifacts: ObjectArtifacts, tmp_path: Path, size: int = 1) -> dict[str, Callable[[], Awaitable[object]]]:
    """All that can be asked of a bucket."""
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", size)
    return {
        "put": lambda: artifacts.put(tmp_path / "file"),
        "locate": lambda: artifacts.locate(UNKNOWN),
        "get": lambda: artifacts.get(UNKNOWN, tmp_path / "copy"),
        "stored": lambda: asyncio.to_thread(artifacts.stored),
    }


async def told(what: Awaitable[object], place: str) -> str:
    """By a refusal, which names the bucket."""
    with pytest.raises(BackendRefused, match=place) as refused:
        await what
    return f"{refused.value.message} {refused.value.hint}"


@pytest.mark.parametrize(
    ("what", "size"), [("put", 1), ("put", 9_000_000), ("put", LARGE), ("locate", 1), ("get", 1), ("stored", 1)]
)
async def test_a_bucket_that_refuses_is_said_in_its_words_and_without_the_credentials(
    bucket: FakeBucket, tmp_path: Path, what: str, size: int
) -> None:
    artifacts = ObjectArtifacts(STORE, tmp_path / "home")
    bucket.refusal = BAD_KEY

    words = await told(asked(artifacts, tmp_path, size)[what](), "s3://bucket/some/folder")

    assert 'SignatureDoesNotMatch: The request signature we calculated does not match "yours".' in words
    assert "403" in words
    assert not [each for each in ("very-secret", "AWS4", "Signature=", "<", "Debug") if each in words]


@pytest.mark.parametrize("what", ["put", "locate", "get", "stored"])
async def test_a_bucket_that_there_is_not_is_said(bucket: FakeBucket, tmp_path: Path, what: str) -> None:
    artifacts = ObjectArtifacts(ArtifactSettings(store="s3://another/folder"), tmp_path / "home")

    words = await told(asked(artifacts, tmp_path)[what](), "s3://another/folder")

    assert "NoSuchBucket: The specified bucket does not exist" in words


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "SignatureDoesNotMatch"),
        ({"AWS_REGION": "us-west-2"}, "AuthorizationHeaderMalformed"),
        ({"BUCKET": "another"}, "NoSuchBucket"),
    ],
)
async def test_a_real_server_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], words: str
) -> None:
    if why := objects.missing():
        pytest.skip(why)
    async with objects.object_server(tmp_path / "objects") as environment:
        for name, value in {**environment, **wrong}.items():
            monkeypatch.setenv(name, value)
        place = f"s3://{wrong.get('BUCKET', objects.BUCKET)}/folder"
        artifacts = ObjectArtifacts(ArtifactSettings(store=place), tmp_path / "home")

        for size in (1, 9_000_000):
            for what in asked(artifacts, tmp_path, size).values():
                assert words in await told(what(), place)


async def test_what_was_put_comes_back_from_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := objects.missing():
        pytest.skip(why)
    async with objects.object_server(tmp_path / "objects") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        artifacts = ObjectArtifacts(ArtifactSettings(store=f"s3://{objects.BUCKET}/folder"), tmp_path / "home")
        for size in (0, 5, 20_000_000, LARGE):
            (tmp_path / "file").write_bytes(os.urandom(size))
            digest = await artifacts.put(tmp_path / "file")
            assert await artifacts.put(tmp_path / "file") == digest
            await artifacts.get(digest, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()
        with pytest.raises(NotFound, match="no artifact"):
            await artifacts.locate(UNKNOWN)

        assert len(await asyncio.to_thread(artifacts.stored)) == 4
        assert await artifacts.prune({digest}) == 20_000_005
        assert list(await asyncio.to_thread(artifacts.stored)) == [digest]


async def test_nobody_at_the_buckets_address_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**FakeBucket().environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
    artifacts = ObjectArtifacts(STORE, tmp_path / "home")

    words = await told(artifacts.locate(UNKNOWN), "s3://bucket/some/folder")

    assert "http://127.0.0.1:1/bucket" in words
    assert "Connection refused" in words


async def test_what_is_not_there_is_not_found(bucket: FakeBucket, tmp_path: Path) -> None:
    artifacts = ObjectArtifacts(STORE, tmp_path / "home")

    with pytest.raises(NotFound, match="no artifact"):
        await artifacts.get(UNKNOWN, tmp_path / "copy")
    with pytest.raises(NotFound, match="no artifact"):
        await artifacts.locate(UNKNOWN)


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
