"""What stays behind when an engine is killed, and the small process that clears it away.

The engine starts this file as a script of its own, holding the other end of its standard input. When the engine goes,
however it goes, the janitor reads the end of the file, ends every process that still belongs to the run and removes the
run's folders. Standard library only, started with `-I -S`: it has to be small and must not fail on an import.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

PROC = "/proc"
MARK = "MODALNOMAD_BUNDLE="
"""Variable in the environment of every process of a replica: a folder inside its run."""
PATIENCE = 1.0
"""Seconds the runner's own supervisors get to end their trees."""
LIMIT = 5.0
"""Seconds after which what cannot be ended or removed is left to the next engine of this home."""
SOCKETS = "sockets"
"""In a run's folder: the folder of sockets, or a link to it where the home's path is too long for a socket."""
LEFT = ".part-"
"""Beginning of the name of what is half there."""
GROUPS = "groups"
"""In a run's folder: a file with the folders in which the run makes control groups, one a line (`limits.Limits`)."""
GROUP_PREFIX = "modalnomad-"
"""Beginning of a control group's name; then the run's name, `-`, and what tells it from others."""


def processes_of(folder: str) -> set[int]:
    """Processes whose environment or working directory says that they belong to `folder`. Empty without /proc."""
    inside = folder.rstrip("/") + "/"
    mark = (MARK + inside).encode()
    found = set()
    for name in _numbers():
        # A process may end at any moment, and those of other users cannot be read: they are none of ours.
        with suppress(OSError):
            if os.readlink(f"{PROC}/{name}/cwd").startswith(inside):
                found.add(int(name))
                continue
        with suppress(OSError), open(f"{PROC}/{name}/environ", "rb") as file:
            if mark in file.read():
                found.add(int(name))
    return found - {os.getpid()}


def _numbers() -> list[str]:
    try:
        return [name for name in os.listdir(PROC) if name.isdigit()]
    except OSError:
        return []


def end_processes(folder: str, patience: float) -> None:
    """Wait `patience` seconds for them to go by themselves, then kill until none is left or the limit is reached."""
    began = time.monotonic()
    while left := processes_of(folder):
        elapsed = time.monotonic() - began
        if elapsed >= patience:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        if elapsed >= patience + LIMIT:
            return
        time.sleep(0.02)


def remove_tree(folder: str, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Remove a folder that somebody may just be writing into. True when nothing is left."""
    for attempt in range(6):
        if attempt:
            sleep(0.05 * attempt)
        shutil.rmtree(folder, onerror=_allow_and_retry)
        if not os.path.lexists(folder):
            return True
    return False


def _allow_and_retry(function: Callable[[str], object], path: str, error: object) -> None:
    """User code may have taken its own rights away from a folder."""
    with suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def groups_of(folder: str) -> list[str]:
    """The control groups of a run."""
    prefix = f"{GROUP_PREFIX}{os.path.basename(folder)}-"
    found = []
    with suppress(OSError), open(os.path.join(folder, GROUPS), encoding="utf-8") as file:
        for base in file.read().splitlines():
            with suppress(OSError):
                found += [os.path.join(base, name) for name in os.listdir(base) if name.startswith(prefix)]
    return found


def end_group(group: str, limit: float = LIMIT) -> bool:
    """Kill all that is in a control group, then remove it. True when it is gone, False after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        with suppress(OSError):
            os.rmdir(group)
        if not os.path.isdir(group):
            return True
        if time.monotonic() >= deadline:
            return False
        _kill_group(group)
        time.sleep(0.005)


def _kill_group(group: str) -> None:
    """One round. Where it can be forbidden nothing is started in it meanwhile: a kill loop alone may lose that race."""
    for name, text in (("pids.max", "0"), ("cgroup.kill", "1")):
        path = os.path.join(group, name)
        with suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
    with suppress(OSError), open(os.path.join(group, "cgroup.procs"), encoding="ascii") as file:
        for pid in {int(line) for line in file} - {0, os.getpid()}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def end_run(folder: str, patience: float = 0.0) -> bool:
    """End and remove everything of a run whose engine is gone. True when nothing is left."""
    end_processes(folder, patience)
    for group in groups_of(folder):
        end_group(group)
    sockets = os.path.join(folder, SOCKETS)
    with suppress(OSError):
        remove_tree(os.readlink(sockets))
    return remove_tree(folder)


def remove_bundle(path: str) -> bool:
    """Remove a bundle that nobody holds; the guard of all of them is held. Under another name: what is left of one, had
    this process to end meanwhile, would pass for the bundle. True when nothing is left."""
    name = os.path.basename(path)
    if not name.startswith(LEFT):
        gone = os.path.join(os.path.dirname(path), f"{LEFT}{os.getpid()}-{name[:12]}-gone")
        if os.path.lexists(gone):  # of an earlier process with our number
            remove_tree(gone)
        with suppress(OSError):  # it is removed where it is, then
            os.rename(path, gone)
            path = gone
    return remove_tree(path)


def clear_unheld(bundles: str) -> None:
    """Remove the unpacked bundles that no process of the home holds a lock on (`bundles.Bundles`)."""
    with suppress(OSError), open(f"{bundles}.lock", "rb") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for name in os.listdir(bundles):
            path = os.path.join(bundles, name)
            with suppress(OSError):  # in use, or gone already
                _remove_unheld(path)


def _remove_unheld(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_bundle(path)
    finally:
        os.close(descriptor)


def main(folder: str, bundles: str) -> None:
    """Wait for the end of standard input, then clear away."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        if not os.read(0, 1):
            break
    if os.path.lexists(folder):
        end_run(folder, PATIENCE)
        clear_unheld(bundles)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
