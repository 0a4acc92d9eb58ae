"""Records on disk: whole or not at all, of this version or refused; locks that go with their holder."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.keys import platform_key
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.embedded.store import FileLock, read_record, write_bytes, write_record
from modalnomad.model.errors import BackendRefused
from modalnomad.model.manifest import SecretRef
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import PutToken


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_record_is_read_back_and_only_its_owner_may(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "r.json"
    write_record(path, "thing", 3, {"a": ["ů", 1]})

    assert read_record(path, "thing", 3) == {"a": ["ů", 1]}
    assert read_record(path, "thing", 4) == {"a": ["ů", 1]}
    assert (mode(path), mode(path.parent), mode(path.parent.parent)) == (0o600, 0o700, 0o700)
    assert list(path.parent.iterdir()) == [path]


def test_no_record_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none", "thing", 1) is None


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_record(path, "thing", 9, {"a": 1})
    before = path.read_bytes()

    with pytest.raises(BackendRefused, match=r"newer modalnomad \(format 9, this one knows 1\)") as refused:
        read_record(path, "thing", 1)

    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'"s3cr3t"',
        b'{"kind": "other", "version": 1, "content": {"a": "s3cr3t"}}',
        b'{"kind": "thing", "version": "1", "content": {}}',
        b'{"kind": "thing", "version": 1, "content": "s3cr3t"}',
        b'{"kind": "thing", "version": 1, "content": {"a": "s3cr3t',
    ],
)
def test_a_damaged_record_is_named_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)

    with pytest.raises(BackendRefused) as refused:
        read_record(path, "thing", 1)

    assert str(path) in str(refused.value)
    assert refused.value.hint
    assert "s3cr3t" not in repr(refused.value)
    assert refused.value.__cause__ is None


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(BackendRefused, match="cannot write"):
        write_record(tmp_path / "file" / "r.json", "thing", 1, {})


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    write_record(path, "thing", 1, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendRefused, match="the disk is full"):
        write_record(path, "thing", 1, {"a": 2})

    assert read_record(path, "thing", 1) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_who_must_not_replace_does_not(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f", b"first", replace=False)

    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "f", b"second", replace=False)

    assert (tmp_path / "f").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_key_is_made_once_whoever_comes_first(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(platform_key, [home] * 8))

    assert len(keys) == 1
    assert {len(key) for key in keys} == {32}
    assert platform_key(home) in keys
    assert platform_key(tmp_path / "other") not in keys
    assert mode(home / "platform.key") == 0o600
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "xyz", "ab" * 31, "ab" * 33])
def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "platform.key").write_text(content)

    with pytest.raises(BackendRefused, match=r"platform\.key is damaged"):
        platform_key(tmp_path)

    assert (tmp_path / "platform.key").read_text() == content


def test_a_lock_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    lock, other = FileLock(tmp_path / "l"), FileLock(tmp_path / "l")
    with lock:
        with pytest.raises(BlockingIOError):
            other.acquire(wait=False)
        with pytest.raises(BlockingIOError):
            other.acquire(shared=True, wait=False)
    other.acquire(wait=False)
    other.release()
    other.release()


def test_sharers_exclude_only_who_wants_it_alone(tmp_path: Path) -> None:
    one, two, alone = FileLock(tmp_path), FileLock(tmp_path), FileLock(tmp_path)
    one.acquire(shared=True, wait=False)
    two.acquire(shared=True, wait=False)
    with pytest.raises(BlockingIOError):
        alone.acquire(wait=False)
    one.release()
    two.release()
    alone.acquire(wait=False)
    alone.release()


def test_a_lock_on_a_file_removed_meanwhile_is_taken_on_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "l"
    first = FileLock(path)
    first.acquire()
    second = FileLock(path)
    waiting = threading.Thread(target=second.acquire)
    waiting.start()
    path.unlink()
    first.release()
    waiting.join()

    third = FileLock(path)
    with pytest.raises(BlockingIOError):
        third.acquire(wait=False)
    second.release()


async def test_secrets_lie_in_files_only_their_owner_can_read(tmp_path: Path) -> None:
    await EmbeddedSecrets(tmp_path / "home").create("db", "main", {"A": "1"})
    everything = list((tmp_path / "home").rglob("*"))

    assert {mode(path) for path in everything if path.is_file()} == {0o600}
    assert {mode(path) for path in everything if path.is_dir()} == {0o700}


async def test_hard_values_come_back_to_the_byte(tmp_path: Path) -> None:
    values = {"A": "a\r\n\t\x01 \u2028'\"\\", "B": "ů🐎" * 5000, "C": "x" * 32_768, "D": "", "E": "undecodable \udcff"}
    secrets = EmbeddedSecrets(tmp_path)
    await secrets.create("db", "main", values)

    assert await secrets.resolve([SecretRef(name="db")], "main") == values


async def test_a_damaged_token_file_hides_no_other_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    discovery = EmbeddedDiscovery(tmp_path)
    for id in ("wk-1", "wk-2"):
        await discovery.publish(PutToken(Token(id=id, secret_sha256="0" * 64, environment="main")))
    assert len(await discovery.tokens("main")) == 2

    path = tmp_path / "discovery" / "tokens" / "main" / "wk-1.json"
    path.write_text(json.dumps({"kind": "token", "version": 99, "content": {}}))

    assert [token.id for token in await discovery.tokens("main")] == ["wk-1", "wk-2"]
    assert "written by a newer modalnomad" in caplog.text
    assert [token.id for token in await EmbeddedDiscovery(tmp_path).tokens("main")] == ["wk-2"]
