"""Ctrl-C and its relatives: the first asks for an orderly end, each further one gives up what is waited for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from modalnomad.kit.tasks import Tasks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Takes the signals while it is entered, on the running event loop."""

    def __init__(self) -> None:
        self._pending = 0
        """Signals that have given up nothing yet."""
        self._arrived = asyncio.Event()
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        # Under nohup the end of the terminal is not to be noticed.
        self._taken = [
            number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
        ]
        for number in self._taken:
            loop.add_signal_handler(number, self.take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._taken:
            loop.remove_signal_handler(number)

    def take(self) -> None:
        """As a signal would."""
        self._pending += 1
        self._arrived.set()

    async def race(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work; False: a signal came first and the work was cancelled. Its errors are raised.

        A signal that comes as the work ends is for the next work.
        """
        async with Tasks("interruptible") as tasks:
            task = tasks.spawn(_outcome(work), "work")
            signalled = tasks.spawn(self._arrived.wait(), "signal")
            await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._pending -= 1
                if not self._pending:
                    self._arrived.clear()
                return False
            if (error := task.result()) is not None:
                raise error
            return True


async def _outcome(work: Coroutine[Any, Any, None]) -> Exception | None:
    """Errors as values: they are told by whoever waits, not logged as forgotten."""
    try:
        await work
    except Exception as error:
        return error
    return None
