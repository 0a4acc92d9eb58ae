"""Standard output of a long-running command, written by a thread: a reader that stands still stops nothing else."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

MANY = 2000
"""Texts that may wait before whoever writes log lines is asked to pause."""
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
            rest = memoryview("".join(texts).encode("utf-8", "backslashreplace"))
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                with self._changed:
                    self._gone = True
                    self._waiting.clear()
                self._tell(self._room.set)
                self._tell(self._on_gone)
                return

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
