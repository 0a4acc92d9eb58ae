"""Linux control groups in both of their versions: where groups may be made, and what their files mean.

Facts: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. In the first version each controller has a
tree of its own; in the second ("unified") one tree has all, and a group with limited children holds no process itself.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, Literal

Controller = Literal["memory", "pids", "cpu"]
Kind = Literal["unified", "separate", "none"]

MIB: Final = 1024 * 1024
PERIOD: Final = 100_000
"""Microseconds in which the CPU's share is counted (the kernel's default)."""
LEAF: Final = "modalnomad-engine"
"""In a group that was given to us for ourselves: where our own processes go, so that it can have limited children."""
_NEEDED: Final = frozenset({"memory", "pids"})


def bases_of(mountinfo: str, own: str) -> tuple[Kind, dict[Controller, list[str]]]:
    """Folders in which groups may be made, the best first, by controller. `mountinfo`, `own`: the texts of
    /proc/self/mountinfo and /proc/self/cgroup. Only looked up, not tried."""
    unified, separate = _mounts(mountinfo)
    groups = _own(own)
    found: dict[Controller, list[str]] = {}
    controllers: tuple[Controller, ...] = ("memory", "pids", "cpu")
    for controller in controllers:
        if controller in separate:
            root, point = separate[controller]
            inner = _below(root, point, groups.get(controller, "/"))
            found[controller] = list(dict.fromkeys((inner, point)))
    if found:
        return "separate", found
    if unified is None:
        return "none", {}
    root, point = unified
    chain = [_below(root, point, groups.get("", "/"))]
    if os.path.basename(chain[0]) == LEAF:
        chain[0] = os.path.dirname(chain[0])
    while chain[-1] != point and len(chain[-1]) > len(point):
        chain.append(os.path.dirname(chain[-1]))
    return "unified", {controller: list(chain) for controller in controllers}


def _mounts(mountinfo: str) -> tuple[tuple[str, str] | None, dict[str, tuple[str, str]]]:
    """(root, mount point) of the unified tree, and of the separate ones by controller."""
    unified = None
    separate: dict[str, tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options, *_) = before.split(" "), [*after.split(" "), "", "", ""]
        if kind == "cgroup2":
            unified = unified or (_plain(fields[3]), _plain(fields[4]))
        elif kind == "cgroup":
            for option in options.split(","):
                separate.setdefault(option, (_plain(fields[3]), _plain(fields[4])))
    return unified, separate


def _plain(text: str) -> str:
    """As mountinfo escapes it: octal."""
    for code in (" ", "\t", "\n", "\\"):
        text = text.replace(f"\\{ord(code):03o}", code)
    return text


def _own(text: str) -> dict[str, str]:
    """Controller → path of our own group; "" for the unified tree."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path
    return found


def _below(root: str, point: str, path: str) -> str:
    """Where a group is seen: a mount may show only the part of the tree below `root`."""
    inner = path[len(root.rstrip("/")) :] if path.startswith(root) else "/"
    return (point.rstrip("/") + "/" + inner.strip("/")).rstrip("/")


def settle(group: str) -> None:
    """Make a unified group able to have limited children, where it was given to us alone (systemd's Delegate=): our own
    processes move into a leaf. What is shared with others, or not ours, is left as it is."""
    with suppress(OSError, ValueError):
        if set(_read(f"{group}/cgroup.subtree_control").split()) >= _NEEDED:
            return
        if not set(_read(f"{group}/cgroup.controllers").split()) >= _NEEDED:
            return
        if not os.access(group, os.W_OK) or not os.access(f"{group}/cgroup.procs", os.W_OK):
            return
        inside = [int(line) for line in _read(f"{group}/cgroup.procs").split()]
        if not all(_ours(pid) for pid in inside):
            return
        leaf = f"{group}/{LEAF}"
        with suppress(FileExistsError):
            os.mkdir(leaf)
        for pid in inside:
            with suppress(ProcessLookupError):
                write_text(f"{leaf}/cgroup.procs", str(pid))
        for controller in ("+memory", "+pids", "+cpu"):
            with suppress(OSError):
                write_text(f"{group}/cgroup.subtree_control", controller)


def _ours(pid: int) -> bool:
    """Are we this process, or above it? Raises OSError when it is gone."""
    while pid > 1 and pid != os.getpid():
        # The command name may hold anything, a bracket too: fields start after the last one.
        pid = int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    return pid == os.getpid()


def texts_of(kind: Kind, controller: Controller, value: float | None) -> list[tuple[str, str, bool]]:
    """(file, text, must succeed) that bound a group, None: to nothing. Memory in bytes, CPU in cores."""
    unified = kind == "unified"
    if controller == "pids":
        return [("pids.max", "max" if value is None else str(int(value)), True)]
    if controller == "cpu":
        share = None if value is None else max(1000, round(value * PERIOD))
        if unified:
            return [("cpu.max", f"{'max' if share is None else share} {PERIOD}", True)]
        return [("cpu.cfs_quota_us", str(-1 if share is None else share), True)]
    if unified:
        text = "max" if value is None else str(int(value))
        swap = "max" if value is None else "0"
        # All of the replica goes, as a container would, not the one process that was largest.
        return [("memory.max", text, True), ("memory.swap.max", swap, False), ("memory.oom.group", "1", False)]
    text = "-1" if value is None else str(int(value))
    # Memory with swap may never be less than memory, so it is lifted first.
    return [
        ("memory.memsw.limit_in_bytes", "-1", False),
        ("memory.limit_in_bytes", text, True),
        ("memory.memsw.limit_in_bytes", text, False),
    ]


def out_of_memory(kind: Kind, group: str) -> bool:
    """Was something in it killed at its limit? The group must still be there."""
    return bool(_counts(f"{group}/{'memory.events' if kind == 'unified' else 'memory.oom_control'}").get("oom_kill"))


def refusals(group: str) -> int:
    """How often a process or thread was refused for the limit."""
    return _counts(f"{group}/pids.events").get("max", 0)


def _counts(path: str) -> dict[str, int]:
    found = {}
    with suppress(OSError, ValueError):
        for line in _read(path).splitlines():
            name, _, number = line.partition(" ")
            found[name] = int(number)
    return found


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write_text(path: str, text: str) -> None:
    """Into a file of the kernel's: one write, never making it. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
