"""What a node no longer needs goes when something new is made there: environments and SDKs that nobody has used for
long. Each start of a replica notes the use of both."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from modalnomad_sdk.store import ImageStore

from .unpack import PART, locked

UNUSED = 30 * 86400.0
"""Seconds after the last start from it. It is made again when it is wanted again."""


def prune(store: str, kept: str) -> list[str]:
    """Names of what was removed; `kept` stays. What a process runs from stays too. What killed builds and removals left
    goes with it. Raises OSError."""
    before = time.time() - UNUSED
    images = ImageStore(Path(store) / "images")
    removed = []
    for image in images.list():
        if image.digest == kept or image.in_use or image.last_used >= before:
            continue
        with images.claim(image.digest) as got:
            # Looked at again: a start may have noted its use.
            path = images.root / image.digest
            if got and _last_use(path / "modalnomad-image.json") < before:
                images.discard(image.digest)
                removed.append(image.digest)
    images.sweep()
    return removed + _prune_sdks(os.path.join(store, "sdk"), before)


def _prune_sdks(folder: str, before: float) -> list[str]:
    removed = []
    with locked(os.path.join(folder, ".lock")):
        commands = _commands()
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if name.startswith(PART):  # of one that was killed: who unpacks holds the lock
                shutil.rmtree(path, ignore_errors=True)
                continue
            if name.startswith(".") or _last_use(Path(path)) >= before or any(name in line for line in commands):
                continue
            # Renamed first: half of one would pass for it, and be used, when this is killed meanwhile.
            part = os.path.join(folder, f"{PART}{name}")
            os.rename(path, part)
            shutil.rmtree(part, ignore_errors=True)
            removed.append(name)
    return removed


def _last_use(path: Path) -> float:
    """Unix time; that of something that is gone is now."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _commands() -> list[str]:
    """Command lines of this machine's processes: a replica's names the SDK it runs from, and loads more of it later."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found.append((entry / "cmdline").read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue  # it has ended
    return found
