"""The SDK of this archive, unpacked once per node: `<store>/sdk/<digest>/modalnomad_sdk`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from .refused import Refused

PART = ".part-"


def make_store(store: str) -> None:
    """The node's folder, its owner's alone: what lies in it runs as a replica. Raises OSError."""
    os.makedirs(store, mode=0o700, exist_ok=True)
    found = os.stat(store)
    if stat.S_IMODE(found.st_mode) & 0o077 and found.st_uid == os.geteuid():
        os.chmod(store, 0o700)


@contextmanager
def locked(path: str, waiting: str = "") -> Iterator[None]:
    """Hold the lock alone; a process that is killed lets go of it. `waiting` is said when another has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                os.write(1, f"modalnomad: {waiting}\n".encode())
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def unpack_sdk(archive: str, store: str, digest: str) -> str:
    """The folder that holds `modalnomad_sdk`. It is complete or not there; two at once unpack it once. Raises Refused,
    OSError."""
    make_store(store)
    folder = os.path.join(store, "sdk")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    target = os.path.join(folder, digest)
    with locked(os.path.join(folder, ".lock")):
        if os.path.isdir(target):
            return target
        for name in os.listdir(folder):
            if name.startswith(PART):
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        part = os.path.join(folder, f"{PART}{os.getpid()}")
        try:
            _extract(archive, digest, part)
            os.rename(part, target)
            _sync(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _extract(archive: str, digest: str, part: str) -> None:
    with open(archive, "rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
        if found != digest:
            raise Refused(f"the archive {archive} is {found[:12]}…, and {digest[:12]}… was sent: dispatch it again")
        with zipfile.ZipFile(file) as content:
            for name in content.namelist():
                parts = name.split("/")
                if parts[0] != "modalnomad_sdk" or ".." in parts:
                    continue  # the entry: it is run from the archive
                path = os.path.join(part, *parts)
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                with open(path, "xb") as out:
                    out.write(content.read(name))
                    out.flush()
                    # The rename must not reach the disk before what it names.
                    os.fsync(out.fileno())


def _sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
