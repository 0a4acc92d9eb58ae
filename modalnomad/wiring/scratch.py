"""Temporary files of commands that end soon: in the home, gone with the process however it ends."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modalnomad.embedded.janitor import remove_tree
from modalnomad.embedded.store import FOLDER_MODE, FileLock, make_folder, translated
from modalnomad.wiring.parts import temporary_files_in


@contextmanager
def scratch_in(home: Path) -> Iterator[None]:
    """Temporary files of this process lie in a folder of its own there. What killed processes left goes first. Raises
    BackendRefused."""
    with translated(f"make a folder for temporary files in {home}"):
        path, lock = _make(home)
    try:
        with temporary_files_in(path):
            yield
    finally:
        remove_tree(str(path))
        lock.release()


def _make(home: Path) -> tuple[Path, FileLock]:
    base = make_folder(home / "scratch")
    # Held while a folder exists whose own lock is not held yet, so that nobody takes it for an abandoned one.
    with FileLock(home / "scratch.lock"):
        for found in base.iterdir():
            _clear_if_abandoned(found)
        path = base / secrets.token_hex(4)
        path.mkdir(mode=FOLDER_MODE)
        lock = FileLock(path)
        lock.acquire(wait=False)
    return path, lock


def _clear_if_abandoned(path: Path) -> None:
    lock = FileLock(path)
    try:
        lock.acquire(wait=False)
    except (BlockingIOError, FileNotFoundError):
        return
    try:
        remove_tree(str(path))
    finally:
        lock.release()
