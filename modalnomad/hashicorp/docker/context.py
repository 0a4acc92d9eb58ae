"""Contexts of builds: the same input gives the same bytes, and the same hash."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from modalnomad.hashicorp.docker.dockerfile import OURS, Dockerfile
from modalnomad.model.errors import UserError
from modalnomad.model.ids import Digest

DOCKERFILE: Final = f"{OURS}/Dockerfile"
MTIME: Final = 315532800
"""1980-01-01, for all files: when they were written is not part of what they are."""


def input_digest(made: Dockerfile, *more: str) -> Digest:
    """SHA-256 over all that the image follows from: text, files, modes, arguments and `more`."""
    listed = [
        [name, *_fingerprint(content)] for name, content in sorted(made.files.items()) if name not in made.uncounted
    ]
    content = {"text": made.text, "files": listed, "arguments": dict(made.arguments), "more": more}
    return Digest(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())


def write_context(made: Dockerfile, target: BinaryIO) -> None:
    """A tar with the Dockerfile at DOCKERFILE; owner root, modes 755 or 644. Raises UserError: a file is unreadable."""
    files: Mapping[str, bytes | Path] = {**made.files, DOCKERFILE: made.text.encode()}
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.mtime = MTIME
            entry.mode = 0o644
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                _add(tar, entry, content)


def _add(tar: tarfile.TarFile, entry: tarfile.TarInfo, local: Path) -> None:
    try:
        with local.open("rb") as file:
            entry.size = local.stat().st_size
            entry.mode = _mode(local)
            tar.addfile(entry, file)
    except OSError as error:
        raise UserError(f"{local} cannot be read: {error}", "make it readable, or ignore it") from error


def _fingerprint(content: bytes | Path) -> tuple[int, str]:
    if isinstance(content, bytes):
        return 0o644, hashlib.sha256(content).hexdigest()
    try:
        with content.open("rb") as file:
            return _mode(content), hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{content} cannot be read: {error}", "make it readable, or ignore it") from error


def _mode(local: Path) -> int:
    return 0o755 if local.stat().st_mode & stat.S_IXUSR else 0o644
