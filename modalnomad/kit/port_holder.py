"""Who listens on a port of this machine, as far as the kernel tells (Linux)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def port_holder(port: int) -> tuple[str, int] | None:
    """Name and number of a process that listens on this TCP port. None: nobody does, or somebody we may not look at."""
    wanted = _sockets(port)
    if not wanted:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is somebody else's
            if any(_leads_to(entry) in wanted for entry in (process / "fd").iterdir()):
                return (process / "comm").read_text("utf-8", "replace").strip(), int(process.name)
    return None


def _sockets(port: int) -> set[str]:
    """As descriptors of them lead to."""
    found = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _leads_to(descriptor: Path) -> str:
    """Empty: closed since it was listed, as connections of a busy process are all the time. The others still tell."""
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        return ""
