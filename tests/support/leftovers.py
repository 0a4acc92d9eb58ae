"""What a run leaves behind: processes, sockets, folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process with all its descendants, as they are now."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_gone(processes: Iterable[psutil.Process], timeout: float = 30) -> None:
    """All of them end within the time; the error names those that did not."""
    _, alive = psutil.wait_procs(list(processes), timeout=timeout)
    left = []
    for process in alive:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
        except psutil.NoSuchProcess:
            continue
    assert not left, "still running:\n" + "\n".join(left)


def mentioning(text: str) -> list[psutil.Process]:
    """Processes whose command line or environment holds the text."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(text in word for word in process.cmdline()) or any(text in v for v in process.environ().values()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def sockets_below(folder: Path) -> list[str]:
    """Unix sockets bound below a folder, files or not."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line.split()[-1] for line in lines if str(folder) in line]
