"""The access log: one line of JSON for each request that is over.

On the path of a request is no more than the making of a tuple. A thread of its own turns those that have come together
into lines and writes them; when it cannot keep up, or the disk takes no more, lines are dropped and counted, and the
requests go on.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.errors import BackendRefused
from modalnomad.router.access_lines import Lines, Record
from modalnomad.router.headers import Peer
from modalnomad.router.replies import Answer
from modalnomad.router.request import Exchange

logger = logging.getLogger("modalnomad.router.access_log")

INTERVAL: Final = 0.25
"""Seconds between two writes."""
WAITING: Final = 20_000
"""Requests that may wait to be written."""
TOGETHER: Final = 256
"""Lines made and written at once; in between other threads get their turn."""
TOGETHER_PIPE: Final = 5
"""The same for standard output: no more than a pipe takes whole (4,096 bytes), as others write to it too."""
TARGET: Final = 2048
"""Bytes of a path that are kept."""
AGENT: Final = 256
"""Bytes of a User-Agent that are kept."""
LAST_WORDS: Final = 5.0
"""Seconds the rest has at the end."""


class AccessLog:
    """`target`: a file's path, or `-` for standard output. A file that is moved away is made anew."""

    def __init__(self, target: str, *, clock: Clock = monotonic) -> None:
        self._path = None if target == "-" else Path(target)
        self._clock = clock
        self._waiting: deque[Record] = deque()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._descriptor = -1
        self._broken = ""
        """Why the last write failed; empty: it did not."""
        self._torn = False
        self._missed = 0
        self.dropped = 0
        """Lines that were never written."""
        self.written = 0

    # --- On the event loop ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin. Raises BackendRefused when the file cannot be written."""
        try:
            self._reach()
        except OSError as error:
            raise BackendRefused(
                f"The access log {self._path} cannot be written: {error.strerror or error}.",
                "Set router.access_log to a file this user may write, in a folder that exists, or to nothing.",
            ) from error
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def add(self, exchange: Exchange, now: float) -> None:
        """A request is over. `now` is on the router's clock."""
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            return
        head = exchange.head
        agent = b""
        for name, value in head.headers:
            if name == b"user-agent":
                agent = value[:AGENT]
                break
        self._waiting.append(
            (
                time.time(), now, exchange.arrived_at, exchange.leased_at, exchange.answered_at, exchange.request_id,
                head.method, exchange.host, head.target[:TARGET], exchange.status, exchange.code, exchange.meter,
                exchange.replica, exchange.origin.address, exchange.received, exchange.sent, agent, exchange.finished,
            )
        )  # fmt: skip

    def add_refusal(self, peer: Peer, request_id: bytes, answer: Answer) -> None:
        """What came never became a request."""
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            return
        now = self._clock()
        self._waiting.append(
            (
                time.time(), now, now, 0.0, 0.0, request_id, b"", "", b"", answer.status, answer.code, None, None,
                peer.address, 0, 0, b"", True,
            )
        )  # fmt: skip

    def close(self) -> None:
        """Write the rest. Waits for it, but not for a disk that stands still."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(LAST_WORDS)
            if self._thread.is_alive():
                logger.error("the access log %s takes no more: %d lines are lost", self._path, len(self._waiting))
                return
            self._thread = None
        self._release()

    # --- In the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        lines = Lines()
        closing = False
        while not closing:
            closing = self._closing.wait(INTERVAL)
            try:
                self._flush(lines)
            except Exception:
                logger.exception("the access log failed")

    def _flush(self, lines: Lines) -> None:
        waiting = self._waiting
        together = TOGETHER if self._path is not None else TOGETHER_PIPE
        # What comes from now on is for the next round: it may belong into another file than the one looked at here.
        left = len(waiting)
        moved = bool(left) and self._moved()
        while left:
            records = [waiting.popleft() for _ in range(min(together, left))]
            left -= len(records)
            text = "".join([lines.line(record) for record in records]).encode()
            try:
                if moved or self._descriptor < 0:
                    self._release()
                    self._reach()
                    moved = False
                self._write(text)
            except OSError as error:
                self._failed(len(records), error)
            else:
                self.written += len(records)
                self._mended()
            time.sleep(0)  # gives the interpreter away when the event loop wants it

    def _reach(self) -> None:
        if self._path is None:
            self._descriptor = os.dup(sys.stdout.fileno())
        else:
            # Not blocking: a named pipe that nobody reads is an error, not a reason to stand still.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(self._path, flags, 0o640)

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _moved(self) -> bool:
        """The file is no longer where it was made: somebody rotated it."""
        if self._path is None or self._descriptor < 0:
            return False
        try:
            found, ours = os.stat(self._path), os.fstat(self._descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino)

    def _write(self, text: bytes) -> None:
        """All of it. What breaks off leaves half a line behind, which the next write ends."""
        rest = memoryview(b"\n" + text if self._torn else text)
        while rest:
            done = os.write(self._descriptor, rest)
            self._torn = bytes(rest[done - 1 : done]) != b"\n" if done else self._torn
            rest = rest[done:]

    def _failed(self, lines: int, error: OSError) -> None:
        self.dropped += lines
        self._missed += lines
        if not self._broken:
            self._broken = error.strerror or str(error)
            logger.error("the access log %s takes no lines, they are dropped: %s", self._path or "-", self._broken)

    def _mended(self) -> None:
        if self._broken:
            logger.warning("the access log %s goes on; %d lines are missing", self._path or "-", self._missed)
            self._broken, self._missed = "", 0
