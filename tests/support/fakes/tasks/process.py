"""A task's process, in a session of its own, under an executor that ends with it and with the runner."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

EXECUTOR: Final = Path(__file__).parent / "executor.py"
ENOEXEC: Final = "Exec format error"


class NotStarted(Exception):
    """Text as in `Driver Failure`."""


@dataclass(frozen=True, slots=True)
class Spec:
    """`path`: the program; `logs`: prefixes of the files of standard output and error; `size`: bytes of each file."""

    path: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    logs: Sequence[str]
    files: int
    size: int


def found(command: str, task: Path, path: str) -> str:
    """Where a command is: an absolute path, one in the task's folder, or on PATH. Raises NotStarted."""
    here = [task / "local" / command, task / command] if not os.path.isabs(command) else [Path(command)]
    for each in here:
        if each.is_file():
            return str(each)
    if not os.path.isabs(command) and (there := shutil.which(command, path=path)):
        return there
    raise _failure(f'binary "{command}" could not be found')


def _failure(text: str) -> NotStarted:
    return NotStarted(f"failed to launch command with executor: rpc error: code = Unknown desc = {text}")


class Process:
    """One run of it. `start` first."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._executor: asyncio.subprocess.Process | None = None
        self.pid = 0

    async def start(self) -> None:
        """Raises NotStarted."""
        pipe = asyncio.subprocess.PIPE
        self._executor = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(EXECUTOR), stdin=pipe, stdout=pipe, start_new_session=True, env={}
        )
        self._write(json.dumps(asdict(self._spec)))
        answer = await self._read()
        if "failed" in answer:
            await self._executor.wait()
            error = "exec format error" if answer["failed"] == ENOEXEC else str(answer["failed"]).lower()
            argv = "[" + " ".join(json.dumps(word) for word in self._spec.argv) + "]"
            path = self._spec.path
            raise _failure(f'failed to start command path="{path}" --- args={argv}: fork/exec {path}: {error}')
        self.pid = answer["pid"]

    def signal(self, number: int) -> None:
        """To the process alone, as Nomad does. Nothing when it has ended."""
        self._write(str(number))

    def _write(self, line: str) -> None:
        assert self._executor is not None
        assert self._executor.stdin is not None
        self._executor.stdin.write(line.encode() + b"\n")

    async def _read(self) -> dict[str, Any]:
        assert self._executor is not None
        assert self._executor.stdout is not None
        line = await self._executor.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"code": 0, "signal": 9}
        return answer

    async def ended(self) -> tuple[int, int]:
        """Exit code and signal; by then nothing it started is left, and its logs are whole."""
        answer = await self._read()
        await self._reaped()
        return answer["code"], answer["signal"]

    async def _reaped(self) -> None:
        assert self._executor is not None
        assert self._executor.stdin is not None
        self._executor.stdin.close()
        await self._executor.wait()

    async def kill(self) -> None:
        """It and all it started, now."""
        if self._executor is not None:
            await self._reaped()
