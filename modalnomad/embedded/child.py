"""One process: its own session, the pipes of its output, the lifeline that ends it with all its children."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from modalnomad_sdk import contract

from modalnomad.embedded import janitor
from modalnomad.kit.open_files import lower_limit_of
from modalnomad.render.process import ProcessSpec

LIFELINE_PATIENCE: Final = 0.5
"""Seconds the runner's supervisor gets to end its tree once the lifeline is cut; then all is killed from here."""
CHUNK: Final = 16 * 1024
"""Bytes of output taken at once."""
LAST_CHUNKS: Final = 64
"""Taken at the end: what the largest pipe holds."""

OutputStream = Literal["stdout", "stderr"]
OnOutput = Callable[[OutputStream, bytes], float]
"""Called with what was read; with nothing at the end of the stream. Returns the seconds to wait before reading on: a
process that floods its log is slowed down by its full pipe."""


class Output:
    """The read end of one output pipe, read as the event loop can take it."""

    def __init__(self, descriptor: int, stream: OutputStream, on_output: OnOutput) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._stream: OutputStream = stream
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.close()
        elif (pause := self._on_output(self._stream, data)) > 0:
            self._loop.remove_reader(self._descriptor)
            self._resume = self._loop.call_later(pause, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._loop.add_reader(self._descriptor, self._readable)

    def finish(self) -> None:
        """Take what is in the pipe now and close it, also when a stray process still holds the other end."""
        if self._closed:
            return
        with suppress(BlockingIOError):
            for _ in range(LAST_CHUNKS):
                if not (data := os.read(self._descriptor, CHUNK)):
                    break
                self._on_output(self._stream, data)
        self.close()

    def close(self) -> None:
        """Twice does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._on_output(self._stream, b"")


class Child:
    """A running process. `wait` must be awaited to its end by its owner: it frees everything."""

    def __init__(
        self, process: subprocess.Popen[bytes], lifeline: int, outputs: tuple[Output, ...], folder: Path
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._lifeline: int | None = lifeline
        self._outputs = outputs
        self._folder = folder
        self._exited = asyncio.Event()
        self._stop_watching = watch_exit(process.pid, self._exited)
        self._killer: asyncio.TimerHandle | None = None

    @classmethod
    def spawn(cls, spec: ProcessSpec, listener: socket.socket, folder: Path, on_output: OnOutput) -> Child:
        """Start it with the listening socket and nothing else of ours. `folder` holds its bundle. Raises OSError.

        On the caller's thread: a process started by a pool's thread would die with that thread where it asked to.
        """
        opened: list[int] = []
        try:
            lifeline, hold = pipe(opened)
            out, out_write = pipe(opened)
            err, err_write = pipe(opened)
            environment = spec.environment | {
                contract.ENV_LISTEN: f"fd:{listener.fileno()}",
                contract.ENV_LIFELINE: f"fd:{lifeline}",
            }
            process = subprocess.Popen(
                spec.argv,
                cwd=spec.cwd,
                env={_bytes(name): _bytes(value) for name, value in environment.items()},
                stdin=subprocess.DEVNULL,
                stdout=out_write,
                stderr=err_write,
                pass_fds=(listener.fileno(), lifeline),
                start_new_session=True,
            )
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        lower_limit_of(process.pid)
        for descriptor in (lifeline, out_write, err_write):
            os.close(descriptor)
        outputs = (Output(out, "stdout", on_output), Output(err, "stderr", on_output))
        return cls(process, hold, outputs, folder)

    async def wait(self) -> int:
        """The return code (negative: a signal), once it and all it started are gone and its output is read.

        Cancelled, it kills first and is cancelled when everything is gone.
        """
        cancelled = False
        while not self._exited.is_set():
            try:
                await self._exited.wait()
            except asyncio.CancelledError:
                cancelled = True
                self.end()
        self._stop_watching()
        if self._killer is not None:
            self._killer.cancel()
        # Before the process is reaped: until then nobody else can have its number.
        kill_group(self.pid)
        code = self._process.wait()
        self._cut()
        if code < 0:
            # Its supervisor did not end by itself, so it cannot have ended its tree.
            await asyncio.to_thread(janitor.end_processes, str(self._folder), 0.0)
        for output in self._outputs:
            output.finish()
        if cancelled:
            raise asyncio.CancelledError
        return code

    def end(self) -> None:
        """Begin to end it with everything it started: cut the lifeline, and soon after kill what is left."""
        self._cut()
        if self._killer is None:
            loop = asyncio.get_running_loop()
            self._killer = loop.call_later(LIFELINE_PATIENCE, kill_group, self.pid)

    def _cut(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)


async def run_quietly(argv: Sequence[str], limit: float, cwd: Path | None = None) -> int | None:
    """The return code of a short helper process without input, output or environment; None when it was ended after
    `limit` seconds. Cancelled, it ends the process. Raises OSError."""
    nothing = subprocess.DEVNULL
    # Not awaited on purpose: it returns in a millisecond, and we watch and reap it ourselves.
    process = subprocess.Popen(  # noqa: ASYNC220
        argv, cwd=cwd, stdin=nothing, stdout=nothing, stderr=nothing, env={}, start_new_session=True
    )
    exited = asyncio.Event()
    stop_watching = watch_exit(process.pid, exited)
    try:
        async with asyncio.timeout(limit):
            await exited.wait()
        return process.wait()
    except TimeoutError:
        return None
    finally:
        stop_watching()
        if process.returncode is None:
            kill_group(process.pid)
            process.wait()


def pipe(opened: list[int]) -> tuple[int, int]:
    """Read end and write end, noted in `opened`. Raises OSError."""
    pair = os.pipe()
    opened.extend(pair)
    return pair


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def kill_group(pid: int) -> None:
    """Kill a session's leader with its group. Gone already is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def watch_exit(pid: int, exited: asyncio.Event) -> Callable[[], None]:
    """Set the event when the process has ended, without reaping it. Returns what stops the watch."""
    loop = asyncio.get_running_loop()
    if not hasattr(os, "pidfd_open"):
        return _watch_exit_on_a_thread(pid, exited, loop)
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, exited.set)

    def stop() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)

    return stop


def _watch_exit_on_a_thread(pid: int, exited: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Where there are no process descriptors: one waiting thread per process."""

    def wait() -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(exited.set)

    threading.Thread(target=wait, name=f"wait-{pid}", daemon=True).start()
    return lambda: None
