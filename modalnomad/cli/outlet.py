"""Standard output of a long-running command, written by a thread: a reader that stands still stops nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

MANY = 2000
"""Texts that may wait before whoever writes log lines is asked to pause."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a file that may have room again later."""
LAST_WORDS = 2.0
"""Seconds the reader is given at the end."""


class Outlet:
    """Enter it on the event loop. `on_gone` is called there when nobody reads any more."""

    def __init__(self, descriptor: int, on_gone: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_gone = on_gone
        self._waiting: list[str] = []
        self._changed = threading.Condition()
        self._closing = False
        self._gone = False
        self._torn = False
        """The last byte that was written is in the middle of a line."""
        self._room = asyncio.Event()
        self._room.set()
        self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)

    def write(self, text: str) -> None:
        """Returns at once; what is written is written in order."""
        with self._changed:
            if self._gone:
                return
            self._waiting.append(text)
            if len(self._waiting) >= MANY:
                self._room.clear()
            self._changed.notify()

    async def room(self) -> None:
        """Return when there is room for one more of many."""
        await self._room.wait()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                texts, self._waiting = self._waiting, []
            self._tell(self._room.set)
            try:
                self._write_all("".join(texts).encode("utf-8", "backslashreplace"))
            except OSError as error:
                if error.errno in NO_ROOM:
                    # A file on a disk that is full: what was to be told is lost, and nothing else.
                    continue
                with self._changed:
                    self._gone = True
                    self._waiting.clear()
                self._tell(self._room.set)
                self._tell(self._on_gone)
                return

    def _write_all(self, data: bytes) -> None:
        """Raises OSError; a line of which only a part could be written is ended by the next one."""
        rest = memoryview(b"\n" + data if self._torn else data)
        while rest:
            written = os.write(self._descriptor, rest)
            self._torn = rest[written - 1] != ord("\n")
            rest = rest[written:]

    def _tell(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            return  # the loop is closed: nobody waits for room

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        # A reader that still stands still loses the rest; the thread ends with the process.
        self._thread.join(LAST_WORDS)
