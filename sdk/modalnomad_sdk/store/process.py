"""One child process at a time, its output line by line; killed with all it started when the caller gives up."""

from __future__ import annotations

import os
import pkgutil
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modalnomad_sdk.store.errors import BuildCancelled

POLL = 0.1
"""Seconds between looks at `cancelled`, and at a child that has ended while others still hold its output open."""
SHORTEST_SECRET = 4
KEPT_OUTPUT = 1_000_000
"""Characters of output kept for an error; the log file has all of it."""


class Masker:
    """Replaces secret texts by `****` wherever a line shows them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted({s for s in secrets if s}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "****")
        return text

    def __repr__(self) -> str:
        return f"Masker({len(self._secrets)} secrets)"


def secret_lines(environments: Iterable[Mapping[str, str]]) -> set[str]:
    """What to mask of secret variables: output is masked line by line. Texts of 1 to 3 characters are left: they stand
    in every line, and are no secrets."""
    values = (value for environment in environments for value in environment.values())
    return {line for value in values for line in (value, *value.splitlines()) if len(line) >= SHORTEST_SECRET}


class CommandFailed(Exception):
    """The command ended with `status` (128 + n: signal n; 127: not started); `output` is what it wrote, masked."""

    def __init__(self, status: int, output: str) -> None:
        super().__init__(f"exit status {status}")
        self.status = status
        self.output = output


def _nothing(_line: str) -> None:
    return


@dataclass
class Child:
    """How commands run: what is told of each line, what is masked, when to stop."""

    on_line: Callable[[str], None] = _nothing
    masker: Masker = field(default_factory=Masker)
    cancelled: threading.Event | None = None

    def run(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> str:
        """Run to its end; the output (both streams, in order, masked).

        Raises CommandFailed; BuildCancelled when `cancelled` is set. However it is left, also by KeyboardInterrupt,
        nothing of the command's process group is left running."""
        if self.cancelled is not None and self.cancelled.is_set():
            raise BuildCancelled("cancelled")
        lifeline, ours = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _guard(), str(lifeline), *command],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[lifeline],
                start_new_session=True,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(lifeline)
        try:
            output = self._read(process)
        finally:
            # The group is signalled before its leader is reaped: until then its number cannot be given to others.
            _kill_group(process.pid)
            status = process.wait()
            os.close(ours)
            if process.stdout is not None:
                process.stdout.close()
        if status:
            raise CommandFailed(status if status > 0 else 128 - status, output)
        return output

    def _read(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        handle = process.stdout.fileno()
        output = select.poll()
        output.register(handle, select.POLLIN)
        kept: list[str] = []
        size = 0
        rest = b""
        while True:
            if self.cancelled is not None and self.cancelled.is_set():
                raise BuildCancelled("cancelled")
            # Looked at before its output: what it wrote last is there to be read once it has ended. What it started in
            # the background has a moment too.
            gone = _has_ended(process.pid)
            readable = bool(output.poll(1000 * POLL))
            data = os.read(handle, 65536) if readable else b""
            rest += data
            *lines, rest = rest.split(b"\n")
            # A progress bar rewrites its line with carriage returns: what it ended with is the line.
            ended = not data if readable else gone
            for raw in [*lines, rest] if ended and rest else lines:
                line = self.masker(raw.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2])
                self.on_line(line)
                if size < KEPT_OUTPUT:
                    kept.append(line)
                    size += len(line)
            if ended:
                if readable:
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                return "\n".join(kept)


def _guard() -> str:
    text = pkgutil.get_data("modalnomad_sdk.store", "guard.py")
    assert text is not None
    return text.decode()


def _has_ended(pid: int) -> bool:
    """Without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:
        # macOS answers so for a group of which only its dead leader is left.
        return
