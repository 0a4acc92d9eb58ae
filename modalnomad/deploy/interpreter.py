"""One Python process that will describe one program: started when it is needed, or a little before."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from modalnomad.kit.pipe_end import PipeEnd

LAUNCHER = """
import json, os, sys
for name in json.loads(sys.argv[1]):
    try:
        __import__(name)
    except Exception:
        pass
line = sys.stdin.buffer.readline()
if not line:
    os._exit(0)
nothing = os.open(os.devnull, os.O_RDONLY)
os.dup2(nothing, 0)
os.close(nothing)
import runpy
sys.argv = ["describe", *json.loads(line)]
runpy.run_module("modalnomad_sdk.describe", run_name="__main__", alter_sys=True)
"""
"""Imports, waits for the arguments on standard input, describes. The end of its input instead: nobody needs it."""

BASE = ("modalnomad_sdk.description", "modalnomad_sdk.loading", "runpy")
"""What every description needs; never `modal`, which is the program's to import."""


class Interpreter:
    """Owns the process, its session of processes and the pipes to it. Close it."""

    def __init__(self, process: asyncio.subprocess.Process, output: PipeEnd) -> None:
        self._process = process
        self._output = output

    @classmethod
    async def start(cls, environment: Mapping[str, str], modules: Sequence[str] | None = None) -> Self:
        """With `modules` it imports those first, using only time that nobody else wants."""
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", LAUNCHER, json.dumps([*BASE, *(modules or ())])),
                stdin=asyncio.subprocess.PIPE,
                stdout=write_end,
                stderr=write_end,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        if modules is not None:
            _let_wait(process.pid, True)
        # A pipe of our own: its reading end is closed in time, whoever still holds the other.
        return cls(process, PipeEnd(read_end))

    @property
    def alive(self) -> bool:
        """It has not ended, as far as is known."""
        return self._process.returncode is None

    async def run(self, arguments: Sequence[str], take: Callable[[str], None]) -> int:
        """Describe; each line written meanwhile goes to `take`. Returns the exit code."""
        _let_wait(self._process.pid, False)
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(ConnectionError):
            stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            await stdin.drain()
        stdin.close()
        code, _ = await asyncio.gather(self._ended(), self._pump(take))
        return code

    async def _ended(self) -> int:
        """Its exit code; what it left running in its session is killed, which also ends its output. A daemon that left
        the session may still hold the pipe: reading ends half a second later all the same."""
        try:
            return await self._process.wait()
        finally:
            await self._kill()
            asyncio.get_running_loop().call_later(0.5, self._output.end)

    async def _pump(self, take: Callable[[str], None]) -> None:
        rest = b""
        while chunk := await self._output.read():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                take(line.decode("utf-8", "replace").rstrip("\r"))
        if rest:
            take(rest.decode("utf-8", "replace"))

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def close(self) -> None:
        """End it and everything it started."""
        try:
            await self._kill()
        finally:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._output.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _let_wait(pid: int, wait: bool) -> None:
    """Idle time only, or the normal share again. Where the system has no such thing, it is an ordinary process."""
    if hasattr(os, "sched_setscheduler"):
        policy = os.SCHED_IDLE if wait else os.SCHED_OTHER
        with contextlib.suppress(OSError):
            os.sched_setscheduler(pid, policy, os.sched_param(0))


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In the child before exec: it ends with the command, also when that is killed -9."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
