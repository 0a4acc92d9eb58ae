"""Atomic, versioned JSON files and locks between processes: what all records of the embedded back end are made of.

A reader sees the old content or the new one, never a part. A file of a newer release is refused and left as it is. What
a killed writer leaves is cleared by the next one in the same folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from modalnomad.embedded.janitor import LEFT
from modalnomad.model.errors import BackendConflict, BackendRefused

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
TEMPORARY_PREFIX: Final = LEFT
"""Half-written files begin with it; nobody reads them."""
LEFTOVER: Final = re.compile(r"\.part-\d+-[0-9a-f]{12}")
"""Their whole names. No record is named so: its file ends in .json."""
WAIT_LIMIT: Final = 30.0
"""Seconds one waits for a lock: all of them are held for moments, so that more means that the holder hangs."""
POLL: Final = 0.002
"""Seconds between two tries at first; doubled up to 0.05."""

_REASONS: Final = {
    errno.ENOSPC: ("the disk is full", "free some space and try again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and try again"),
    errno.EFBIG: ("the file is larger than this process may write", "raise the limit (ulimit -f) and try again"),
    errno.EROFS: ("the file system is read-only", "choose another folder with MODALNOMAD_HOME"),
    errno.EACCES: ("permission denied", "make it yours (chown) or choose another folder with MODALNOMAD_HOME"),
    errno.EPERM: ("operation not permitted", "make it yours (chown) or choose another folder with MODALNOMAD_HOME"),
    errno.EMFILE: ("too many open files in this process", "raise the limit (ulimit -n) and try again"),
    errno.ENFILE: ("too many open files on this machine", "close some programs and try again"),
    errno.EIO: ("the disk reports an error", "look for it in the system's log (dmesg); the disk may be failing"),
    errno.EAGAIN: ("another process holds it", "try again, or look for a modalnomad that hangs"),
    errno.EEXIST: ("a file has the name of a folder", "choose another folder with MODALNOMAD_HOME"),
    errno.ENOTDIR: ("a part of the path is a file", "choose another folder with MODALNOMAD_HOME"),
}


def refused(doing: str, error: OSError) -> BackendRefused:
    """The platform's error for a system call that failed while `doing` something ("write /a/b")."""
    reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
    return BackendRefused(f"cannot {doing}: {reason}", hint)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """OSError → BackendRefused, chained."""
    try:
        yield
    except OSError as error:
        raise refused(doing, error) from error


def make_folder(path: Path) -> Path:
    """The folder and its missing parents, each only for its owner; they survive a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        sync_folder(path.parent)
    return path


def sync_folder(path: Path) -> None:
    """Make what was renamed, made or removed in this folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder; the rename itself is still atomic.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Put `content` there at once: written beside it, synced, renamed.

    With `replace` False an existing file wins and FileExistsError is raised. Other failures are OSError; none leaves
    anything behind. Only one process writes into a folder at a time, so that files of dead ones can be told.
    """
    with FileLock(make_folder(path.parent)):
        clear_leftovers(path.parent)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove half-written files. Whoever calls holds the folder's lock: nobody is writing them."""
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if LEFTOVER.fullmatch(entry.name)]
    for path in left:
        Path(path).unlink(missing_ok=True)


def remove_file(path: Path) -> None:
    """Remove it for good: a power cut does not bring it back. Raises FileNotFoundError, OSError."""
    path.unlink()
    sync_folder(path.parent)


def write_record(path: Path, kind: str, version: int, content: dict[str, Any]) -> None:
    """Write one record atomically. Raises BackendRefused, and then the record is as it was (but for an error of the
    disk at the very end: then it may be the old or the new one)."""
    text = json.dumps({"kind": kind, "version": version, "content": content}, sort_keys=True, separators=(",", ":"))
    with translated(f"write {path}"):
        write_bytes(path, text.encode("ascii"))


def read_record(path: Path, kind: str, version: int) -> dict[str, Any] | None:
    """The record's content, or None when there is no such file. Raises BackendRefused when it cannot be used.

    No part of the content stands in the error: it may be a secret.
    """
    with translated(f"read {path}"):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
    damaged = BackendRefused(
        f"{path} is damaged: it is no {kind} record",
        "restore the file from a copy, or remove it and create it again",
    )
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        # Not chained: the decoder's error carries the whole document.
        raise damaged from None
    if not isinstance(record, dict) or record.get("kind") != kind or not isinstance(record.get("version"), int):
        raise damaged
    if record["version"] > version:
        raise BackendRefused(
            f"{path} was written by a newer modalnomad (format {record['version']}, this one knows {version})",
            "use the newer modalnomad, or another folder with MODALNOMAD_HOME; the file is left as it is",
        )
    content = record.get("content")
    if not isinstance(content, dict):
        raise damaged
    return content


class FileLock:
    """A lock between processes, gone with its holder. Of one process two holders exclude each other too.

    It may lie on a file (made when missing) or on an existing folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, shared: bool = False, wait: bool = True, limit: float = WAIT_LIMIT) -> None:
        """Raises BlockingIOError when somebody holds it and `wait` is False, or holds it for more than `limit` seconds;
        other failures are OSError."""
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        deadline = time.monotonic() + limit
        pause = POLL
        while True:
            try:
                if self._try(mode):
                    return
            except BlockingIOError:
                if not wait or time.monotonic() >= deadline:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, 0.05)

    def _try(self, mode: int) -> bool:
        """False: the file was removed meanwhile, try again."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, mode)
            if self._is_current(descriptor):
                self._descriptor = descriptor
                return True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return False

    def _open(self) -> int:
        if self.path.is_dir():
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        make_folder(self.path.parent)
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)

    def _is_current(self, descriptor: int) -> bool:
        """False when the file was removed while we waited: the lock would be on something nobody else can see."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Nothing happens when it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Said, not left to the last close: a child that is just being started holds a copy for a moment.
            try:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)

    @property
    def held(self) -> bool:
        """By this object."""
        return self._descriptor is not None

    def note(self, text: str) -> None:
        """Leave a word about the holder in the locked file; its modification time says since when it is held."""
        assert self._descriptor is not None
        os.utime(self._descriptor)
        # On a full disk the note is missed, not the lock: what frees space takes locks too.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def read_note(self) -> str:
        """What the last holder noted; empty: nothing."""
        with suppress(OSError, UnicodeDecodeError):
            return self.path.read_text("utf-8")
        return ""

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file while something is read and written. Raises BackendRefused: another process hangs."""
    lock = FileLock(path)
    with translated(f"lock {path}"):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def named_lock(path: Path, name: str) -> Iterator[None]:
    """Hold the lock file exclusively, with a note of this process and the time, or raise BackendConflict naming the
    holder, BackendRefused."""
    lock = FileLock(path)
    with translated(f"lock {path}"), FileLock(make_folder(path.parent)):
        try:
            lock.acquire(wait=False)
        except BlockingIOError:
            holder = lock.read_note() or "another process"
            raise BackendConflict(f"{name} is held by {holder}", "wait until it is done, or stop it") from None
    try:
        lock.note(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        yield
    finally:
        lock.release()


def held_since(folder: Path) -> dict[str, float]:
    """Names of the lock files of `folder` that somebody holds now → Unix time since when. Raises OSError."""
    found: dict[str, float] = {}
    if not folder.is_dir():
        return found
    with FileLock(folder):  # who looks whether one is held has it for a moment: nobody asks for it then
        for path in sorted(folder.glob("*.lock")):
            lock = FileLock(path)
            try:
                since = path.stat().st_mtime
                lock.acquire(shared=True, wait=False)
            except BlockingIOError:
                found[path.stem] = since
            except FileNotFoundError:
                continue  # removed meanwhile
            else:
                lock.release()
    return found
