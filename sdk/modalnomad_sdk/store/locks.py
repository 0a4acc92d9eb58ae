"""File locks (flock): one builder per image across processes, and "in use" marks that die with their holder."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modalnomad_sdk.store.errors import BuildCancelled

POLL = 0.05
"""Seconds between two tries: flock has no waiting that another thread could interrupt."""


@contextmanager
def locked(
    path: Path, cancelled: threading.Event | None, on_wait: Callable[[], None], needless: Callable[[], bool]
) -> Iterator[bool]:
    """Hold the lock alone, or stop waiting for it once it is `needless`; yields whether it is held. `on_wait` is called
    once when waiting begins.

    Raises BuildCancelled when `cancelled` is set while it waits."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    waited = False
    try:
        while not (held := _try(handle, fcntl.LOCK_EX)) and not needless():
            if not waited:
                on_wait()
            waited = True
            if cancelled is None:
                time.sleep(POLL)
            elif cancelled.wait(POLL):
                raise BuildCancelled("cancelled while another build of the same image was running")
        yield held
    finally:
        os.close(handle)


@contextmanager
def shared(path: Path) -> Iterator[bool]:
    """Hold the lock beside other holders; yields False when somebody has it alone."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _try(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Hold the lock alone if nobody has it; yields whether it was got."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _try(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def _try(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
