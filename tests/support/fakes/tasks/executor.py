"""Program: runs one task's process, as `nomad executor` does. Started by process.py with the standard library only.

Standard input: one JSON line (see `Spec` there), then a signal's number a line; its end means the runner is gone, and
all is killed. Standard output: one JSON line when the process runs or could not be started, one when it has ended *and*
nothing it started is left: this process is the subreaper of them all.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
from typing import Any

SUBREAPER = 36
CHUNK = 65536


class Log:
    """Files `<prefix>.<n>`, of which the newest are kept; a file ends at a line's end where it can."""

    def __init__(self, prefix: str, files: int, size: int) -> None:
        self.prefix, self.files, self.size = prefix, files, size
        self.number, self.written = 0, 0
        self.file = self._open()

    def _open(self) -> int:
        return os.open(f"{self.prefix}.{self.number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, data: bytes) -> None:
        while data:
            room = self.size - self.written
            cut = len(data) if len(data) <= room else data.rfind(b"\n", 0, max(room, 0)) + 1
            if cut == 0 and self.written == 0:
                cut = room  # a line longer than a file
            if cut:
                os.write(self.file, data[:cut])
                self.written += cut
                data = data[cut:]
            if data:
                self._next()

    def _next(self) -> None:
        os.close(self.file)
        self.number, self.written = self.number + 1, 0
        self.file = self._open()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.prefix}.{self.number - self.files}")


def tell(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def start(spec: dict[str, Any], outputs: list[int]) -> int:
    """The process's id. Raises OSError."""
    os.chdir(spec["cwd"])
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    moves = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(outputs, 1)]
    return os.posix_spawn(
        spec["path"],
        spec["argv"],
        spec["env"],
        file_actions=[*actions, *moves],
        setpgroup=0,
        setsigdef=[signal.SIGPIPE],
    )


def kill_all() -> None:
    """Every descendant: those whose parent ended become children of this process."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    me, found = os.getpid(), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == me:
                    found.append(int(name))
    return found


def drain(logs: dict[int, Log]) -> None:
    """What is still in the pipes; nobody writes any more."""
    for fd, log in logs.items():
        with contextlib.suppress(BlockingIOError):
            while data := os.read(fd, CHUNK):
                log.write(data)


def watch(pid: int, logs: dict[int, Log], woken: int) -> int:
    """The wait status of the process. Passes signals and output on meanwhile."""
    reading, commands = {0, woken, *logs}, b""
    while True:
        for fd in select.select(reading, [], [])[0]:
            if fd == woken:
                os.read(woken, CHUNK)
                while True:
                    ended, status = next_ended()
                    if ended == pid:
                        return status
                    if not ended:
                        break
            elif fd == 0:
                data = os.read(0, CHUNK)
                if not data:
                    os.kill(pid, signal.SIGKILL)
                    reading.discard(0)
                commands += data
                *lines, commands = commands.split(b"\n")
                for line in lines:
                    os.kill(pid, int(line))
            elif data := os.read(fd, CHUNK):
                logs[fd].write(data)
            else:
                reading.discard(fd)


def next_ended() -> tuple[int, int]:
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


def main() -> None:
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    with open(0, "rb", buffering=0, closefd=False) as commands:  # what follows the first line is for select
        spec = json.loads(commands.readline())
    woken, waker = os.pipe()
    for fd in (woken, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pipes = [os.pipe() for _ in spec["logs"]]
    try:
        pid = start(spec, [write for _, write in pipes])
    except OSError as error:
        tell({"failed": error.strerror})
        return
    logs = {}
    for (read, write), prefix in zip(pipes, spec["logs"], strict=True):
        os.close(write)
        os.set_blocking(read, False)
        logs[read] = Log(prefix, spec["files"], spec["size"])
    tell({"pid": pid})
    status = watch(pid, logs, woken)
    kill_all()
    drain(logs)
    ended = os.waitstatus_to_exitcode(status)
    tell({"code": max(ended, 0), "signal": max(-ended, 0)})


if __name__ == "__main__":
    main()
