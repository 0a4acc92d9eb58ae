"""Every process below this one: found, signalled, reaped."""

from __future__ import annotations

import os
import signal


def descendants() -> list[int]:
    """Every process below this one."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                # The command name may hold anything, a bracket too: fields start after the last one.
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue  # gone meanwhile
        children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def signal_all(number: int, namespaced: bool = False) -> bool:
    """To everything below this process; in a PID namespace, to everything in it. False: there is nothing."""
    if namespaced:
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            return False
        return True
    below = descendants()
    for pid in below:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return bool(below)


def reap() -> list[tuple[int, int]]:
    """(pid, exit code) of children that ended; 128 + signal for killed ones."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended.append((pid, code if code >= 0 else 128 - code))


def kill_below(namespaced: bool = False) -> None:
    """Kill and reap everything below this process. Repeated, because a dying one may just have forked."""
    while True:
        signal_all(signal.SIGKILL, namespaced)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
