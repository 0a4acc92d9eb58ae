"""Archives of folders and ordinary files, unpacked so that nothing lands outside the target.

`tarfile`'s own `filter="data"` came with Python 3.11.4 and 3.10.12; distributions still ship older ones.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


class UnsafeArchive(ValueError):
    """A member that no archive of ours has: outside the target, or neither a folder nor an ordinary file."""


def unpack(tar: tarfile.TarFile, target: Path, members: Iterable[tarfile.TarInfo] | None = None) -> None:
    """Members (all of them unless given) under `target`, which exists. Only the executable bit of a mode counts.
    Raises UnsafeArchive before the offending member is written; OSError."""
    for member in tar if members is None else members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise UnsafeArchive(f"{member.name!r} would land outside {target}")
        path = target.joinpath(*name.parts)
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
        elif member.isreg():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None, "an ordinary file has content"
            with content, path.open("xb") as out:
                shutil.copyfileobj(content, out)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
        else:
            raise UnsafeArchive(f"{member.name!r} is neither a folder nor an ordinary file")
