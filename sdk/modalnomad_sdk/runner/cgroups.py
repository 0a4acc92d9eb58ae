"""Into the control groups that limit this replica (made by who starts it)."""

from __future__ import annotations

import os

from .descendants import descendants


def enter(folders: tuple[str, ...]) -> list[str]:
    """This process and all below it, which run no code of the user yet. What did not work, in words."""
    if not folders:
        return []
    entered: set[int] = set()
    problems: dict[str, str] = {}
    # What one of them started before it was inside itself is found by the next look.
    while new := {os.getpid(), *descendants()} - entered:
        entered |= new
        for folder in folders:
            for pid in new:
                try:
                    _write(f"{folder}/cgroup.procs", pid)
                except ProcessLookupError:
                    continue
                except OSError as error:
                    problems[folder] = f"not limited by {folder}: {error.strerror}"
    return list(problems.values())


def _write(path: str, pid: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(pid).encode())
    finally:
        os.close(descriptor)
