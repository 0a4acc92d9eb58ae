"""Files that an image's build steps left in their folder, laid into each replica's own (docs/decisions).

Small files are copied; large ones are hard links to the image's, which are read-only: a model of many gigabytes costs a
start nothing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

IMAGE_FILES = "root"
"""Folder of the environment where the image's own files lie and its commands run: what `/root` is in a container."""
LINKED_FROM = 1024 * 1024
"""Bytes from which such a file is shared by all replicas, and read-only; smaller ones each gets a copy of."""


def lay_image_files(source: Path, target: Path) -> None:
    """Everything in `source` (need not exist) that `target` has not: the bundle, already there, wins. Compiled Python
    code is left out, because the source beside it may be the bundle's. Raises OSError."""
    try:
        entries = os.scandir(source)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            place = target / entry.name
            if entry.is_symlink():
                if not os.path.lexists(place):
                    place.symlink_to(os.readlink(entry.path))
            elif entry.is_dir():
                if entry.name == "__pycache__" or (os.path.lexists(place) and not place.is_dir()):
                    continue
                place.mkdir(mode=0o700, exist_ok=True)
                lay_image_files(Path(entry.path), place)
            elif entry.is_file() and not os.path.lexists(place):
                _lay(entry, place)


def _lay(entry: os.DirEntry[str], place: Path) -> None:
    if entry.stat().st_size >= LINKED_FROM:
        try:
            os.link(entry.path, place)
        except OSError:
            # Another device, or a file system without links: a copy does as well.
            shutil.copy2(entry.path, place)
    else:
        shutil.copy2(entry.path, place)
