"""A disk that is full or fails: what was there stays, the message says so, nothing lies about."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

import pytest

from modalnomad.embedded import store
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.embedded.store import TEMPORARY_PREFIX, FileLock, named_lock
from modalnomad.model.errors import BackendRefused
from modalnomad.model.manifest import SecretRef
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import DeleteToken, PublishApp, PutToken
from tests.support.apps import app_record, version

FAILURES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk reports an error",
    errno.EROFS: "the file system is read-only",
}
CALLS = ("open", "fsync", "replace")
NEW = "new value"
"""With a blank: the names of temporary folders, which messages show, are drawn from letters and may hold any word."""


def token(name: str) -> Token:
    return Token(id="wk-1", secret_sha256="0" * 64, environment="main", name=name)


def left_behind(home: Path) -> list[Path]:
    return list(home.rglob(f"{TEMPORARY_PREFIX}*"))


def failing(call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system call fails on every file that is being written, and on no other."""
    original = getattr(os, call)

    def fail(first: object, *rest: object, **named: object) -> object:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        if TEMPORARY_PREFIX in path:
            raise OSError(number, os.strerror(number), path)
        return original(first, *rest, **named)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("call", CALLS)
async def test_what_was_there_stays(tmp_path: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    discovery, secrets, artifacts = EmbeddedDiscovery(tmp_path), EmbeddedSecrets(tmp_path), EmbeddedArtifacts(tmp_path)
    old = app_record("a")
    source = tmp_path / "source"
    source.write_text("bundle")
    await discovery.publish(PublishApp(old, 0))
    await discovery.publish(PutToken(token("old")))
    await secrets.create("s", "main", {"A": "old"})
    new = app_record("a", *old.versions, version("a", 2), serial=2)
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: discovery.publish(PublishApp(new, 1)),
        lambda: discovery.publish(PutToken(token(NEW))),
        lambda: secrets.create("s", "main", {"A": NEW}, replace=True),
        lambda: secrets.create_anonymous("a" * 64, "main", {"A": NEW}),
        lambda: artifacts.put(source),
    ]

    failing(call, number, monkeypatch)
    for write in writes:
        with pytest.raises(BackendRefused, match=FAILURES[number]) as refused:
            await write()
        assert refused.value.hint
        assert NEW not in refused.value.message
    monkeypatch.undo()

    for fresh in (discovery, EmbeddedDiscovery(tmp_path)):
        assert await fresh.apps() == (old,)
        assert await fresh.tokens("main") == (token("old"),)
    assert await secrets.resolve([SecretRef(name="s")], "main") == {"A": "old"}
    assert (secrets.anonymous(), artifacts.stored()) == ({}, {})
    assert left_behind(tmp_path) == []
    for write in writes:
        await write()


async def test_a_removal_that_the_disk_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discovery = EmbeddedDiscovery(tmp_path)
    await discovery.publish(PutToken(token("old")))

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(BackendRefused, match=r"cannot remove .*read-only"):
        await discovery.publish(DeleteToken("wk-1", "main"))
    monkeypatch.undo()

    assert await discovery.tokens("main") == (token("old"),)


def test_a_lock_is_held_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What frees space takes locks."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with named_lock(tmp_path / "l.lock", "it"), pytest.raises(BlockingIOError):
        FileLock(tmp_path / "l.lock").acquire(wait=False)


async def test_who_hangs_with_the_records_locked_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock.acquire, "__kwdefaults__", {"shared": False, "wait": True, "limit": 0.01})
    discovery = EmbeddedDiscovery(tmp_path)
    await discovery.publish(PutToken(token("old")))

    with (
        FileLock(tmp_path / "discovery" / "lock"),
        pytest.raises(BackendRefused, match="another process holds it") as refused,
    ):
        await discovery.publish(PutToken(token("new")))

    assert "hangs" in (refused.value.hint or "")
    assert await discovery.tokens("main") == (token("old"),)


def test_a_folder_that_cannot_be_synced_is_no_failure_where_that_is_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    store.sync_folder(tmp_path)


async def test_a_copy_that_cannot_be_locked_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network's file system without locks."""
    source = tmp_path / "source"
    source.write_text("bundle")
    original = fcntl.flock

    def fail(what: int | IO[bytes], mode: int) -> None:
        number = what if isinstance(what, int) else what.fileno()
        if TEMPORARY_PREFIX in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        original(number, mode)

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(BackendRefused, match="No locks available"):
        await EmbeddedArtifacts(tmp_path).put(source)

    assert not left_behind(tmp_path)
    assert not [fd for fd in os.listdir("/proc/self/fd") if TEMPORARY_PREFIX in _target(fd)]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""  # the one this list was read with
