"""Debian packages an image asks for: nothing is installed, what is missing is told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

STATUS = Path("/var/lib/dpkg/status")
"""Rewritten by every change of the machine's packages, so its time names a state of them."""


def missing(asked: list[tuple[str, str]], folder: Path) -> tuple[str, ...]:
    """Names that are not installed, in order. An answer is remembered in `folder` until a package changes.

    Where there is no dpkg nothing can be told, and nothing is claimed to be missing."""
    names = tuple(dict.fromkeys(name for name, _ in asked))
    if not names or shutil.which("dpkg-query") is None:
        return ()
    try:
        status = STATUS.stat()
    except OSError:
        return _ask(names)
    state = json.dumps([names, status.st_mtime_ns, status.st_size]).encode()
    marker = folder / ".apt" / hashlib.sha256(state).hexdigest()
    if marker.exists():
        return ()
    found = _ask(names)
    if not found:
        marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.touch()
    return found


def _ask(names: tuple[str, ...]) -> tuple[str, ...]:
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${binary:Package} ${Package} ${db:Status-Status}\n", "--", *names],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    installed: set[str] = set()
    for line in done.stdout.splitlines():
        *known, status = line.split(" ")
        if status == "installed":
            installed.update(known)
    return tuple(name for name in names if name not in installed)
