"""A replica that a template forked: no child of ours, so a pipe tells whether it exists and how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from modalnomad.embedded import janitor
from modalnomad.embedded.child import LIFELINE_PATIENCE, OnOutput, Output, pipe

KILLED: Final = -signal.SIGKILL
"""Return code of a replica that left none."""


class Forked:
    """As `child.Child`. Before `adopt` nobody knows whether there is a process; the pipes are ours all the same."""

    def __init__(self, lifeline: int, result: int, outputs: tuple[Output, ...], folder: Path) -> None:
        self._lifeline: int | None = lifeline
        self._outputs = outputs
        self._folder = folder
        self._pidfd: int | None = None
        self._said = b""
        self._ended = asyncio.Event()
        self._killer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        os.set_blocking(result, False)
        self._result: int | None = result
        self._loop.add_reader(result, self._read)

    @classmethod
    def make(
        cls, environment: dict[str, str], listener: int, folder: Path, on_output: OnOutput
    ) -> tuple[Forked, list[int], list[int]]:
        """It, the descriptors to send in the template's order, and those of them to close afterwards. Raises OSError.

        The environment goes through anonymous memory: no file, no argument and no other process shows it.
        """
        opened: list[int] = []
        try:
            memory = os.memfd_create("environment")
            opened.append(memory)
            with open(memory, "wb", closefd=False) as file:
                file.write(json.dumps(environment).encode())
            lifeline, hold = pipe(opened)
            result, result_write = pipe(opened)
            out, out_write = pipe(opened)
            err, err_write = pipe(opened)
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        outputs = (Output(out, "stdout", on_output), Output(err, "stderr", on_output))
        theirs = [memory, out_write, err_write, lifeline, result_write]
        return cls(hold, result, outputs, folder), [*theirs[:3], listener, *theirs[3:]], theirs

    def _read(self) -> None:
        assert self._result is not None
        try:
            data = os.read(self._result, 64)
        except BlockingIOError:
            return
        if data:
            self._said += data
            return
        self._drop_result()
        self._ended.set()

    def _drop_result(self) -> None:
        result, self._result = self._result, None
        if result is not None:
            self._loop.remove_reader(result)
            os.close(result)

    def adopt(self, pidfd: int) -> None:
        """It exists, and this is its outermost process."""
        self._pidfd = pidfd

    async def never_was(self, limit: float) -> bool:
        """The template has gone without a word: True when no process ever took this start over, nor ever will."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._ended.wait()
        return self._ended.is_set() and not self._said

    def discard(self) -> None:
        """Nothing was started, and nothing will be."""
        self._cut()
        self._drop_result()
        for output in self._outputs:
            output.close()

    async def wait(self) -> int:
        """As `Child.wait`."""
        cancelled = False
        while not self._ended.is_set():
            try:
                await self._ended.wait()
            except asyncio.CancelledError:
                cancelled = True
                self.end()
        self._cut()
        if self._killer is not None:
            self._killer.cancel()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        code = int(self._said) if self._said.strip(b"+") else KILLED
        if code < 0:
            # Its supervisor did not end by itself, so it cannot have ended its tree.
            await asyncio.to_thread(janitor.end_processes, str(self._folder), 0.0)
        for output in self._outputs:
            output.finish()
        if cancelled:
            raise asyncio.CancelledError
        return code

    def end(self) -> None:
        """As `Child.end`."""
        self._cut()
        if self._killer is None:
            self._killer = self._loop.call_later(LIFELINE_PATIENCE, self._kill)

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                return
            for pid in janitor.processes_of(str(self._folder)):
                os.kill(pid, signal.SIGKILL)

    def _cut(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)
