"""Runs one command and makes sure nothing of it outlives whoever asked for it: `python -I -S -c <this text>`.

Arguments: the number of a pipe's read end, then the command. The asker holds the write end and never writes: when the
pipe ends, the asker is gone (killed, perhaps) and the whole process group is killed. Exit status: the command's;
128 + n when signal n ended it; 127 when it could not be started.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
from typing import NoReturn


def _watch(lifeline: int) -> NoReturn:
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)
    raise SystemExit(1)


def main(arguments: list[str]) -> int:
    lifeline = int(arguments[0])
    os.set_inheritable(lifeline, False)
    _thread.start_new_thread(_watch, (lifeline,))
    try:
        child = os.posix_spawnp(arguments[1], arguments[1:], os.environ)
    except OSError as error:
        sys.stderr.write(f"{arguments[1]}: {error.strerror}\n")
        return 127
    status = os.waitpid(child, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
