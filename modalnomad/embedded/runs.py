"""One engine's folder: sockets, working copies, and what makes sure that they go when the engine does."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from modalnomad.embedded import janitor
from modalnomad.embedded.store import FOLDER_MODE, FileLock, make_folder

SOCKET_PATH_LIMIT: Final = 107
"""Bytes of a Unix socket's path that every system takes."""
SOCKET_NAME_LENGTH: Final = len("/999999999")
JANITOR_WAIT: Final = 5.0
"""Seconds the janitor may take to end once it is told to."""


class Run:
    """`<home>/run/<id>`: `lock` (held as long as the engine lives), `sockets`, `replicas/<n>`, `scratch`.

    Made by `open`, which also clears away runs whose engine is gone. `open` and `close` are not for the event loop.
    """

    def __init__(self, path: Path, sockets: Path, lock: FileLock) -> None:
        self.path = path
        self.sockets = sockets
        self._lock = lock
        self._kept = FileLock(sockets)
        self._janitor: subprocess.Popen[bytes] | None = None

    @classmethod
    def open(cls, home: Path) -> Run:
        """Raises OSError, leaving nothing."""
        runs = make_folder(home / "run")
        # Held while a folder exists whose own lock is not yet held, so that nobody takes it for an abandoned one.
        with FileLock(home / "run.lock"):
            for found in sorted(runs.iterdir()):
                _clear_if_abandoned(found)
            path = runs / secrets.token_hex(4)
            path.mkdir(mode=FOLDER_MODE)
            try:
                (path / "replicas").mkdir(mode=FOLDER_MODE)
                (path / "scratch").mkdir(mode=FOLDER_MODE)
                sockets = _make_sockets(path)
                lock = FileLock(path / "lock")
                lock.acquire(wait=False)
            except BaseException:
                janitor.end_run(str(path))
                raise
        run = cls(path, sockets, lock)
        try:
            # What tidies /tmp removes what was not used for days, but nothing that is locked (tmpfiles.d(5)).
            run._kept.acquire(shared=True, wait=False)
            run._start_janitor()
        except BaseException:
            run.close()
            raise
        return run

    def _start_janitor(self) -> None:
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", janitor.__file__, str(self.path), str(self.path.parent.parent / "bundles")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,
        )

    def socket_path(self, number: int) -> str:
        """Where the replica with this number (of this engine, never used twice) listens."""
        return str(self.sockets / str(number))

    def replica_folder(self, number: int) -> Path:
        """What the replica with this number has to itself."""
        return self.path / "replicas" / str(number)

    @property
    def scratch(self) -> Path:
        """For temporary files of the engine's process: they go with the run."""
        return self.path / "scratch"

    def close(self) -> None:
        """Remove everything; the processes have ended before. Twice does nothing more."""
        janitor.end_run(str(self.path))
        self._kept.release()
        self._lock.release()
        process, self._janitor = self._janitor, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(JANITOR_WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _make_sockets(run: Path) -> Path:
    """A folder with a path short enough, only for its owner; linked from the run's folder when it lies elsewhere."""
    inside = run / janitor.SOCKETS
    if len(os.fsencode(inside)) + SOCKET_NAME_LENGTH <= SOCKET_PATH_LIMIT:
        inside.mkdir(mode=FOLDER_MODE)
        return inside
    for base in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp"):
        if base and os.path.isdir(base) and os.access(base, os.W_OK):
            elsewhere = Path(tempfile.mkdtemp(prefix="modalnomad-", dir=base))
            inside.symlink_to(elsewhere)
            return elsewhere
    raise OSError(f"{run} is too long for Unix sockets, and neither XDG_RUNTIME_DIR nor /tmp can be written")


def _clear_if_abandoned(path: Path) -> None:
    lock = FileLock(path / "lock")
    try:
        lock.acquire(wait=False)
    except BlockingIOError:
        return
    try:
        janitor.end_run(str(path))
    finally:
        lock.release()
