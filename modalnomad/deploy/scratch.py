"""Folders for what is needed only for a moment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modalnomad.model.errors import BackendRefused


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Where this process's temporary files lie; gone afterwards. Raises BackendRefused when there is no such place."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        raise BackendRefused(
            f"no temporary file can be made: {error.strerror or error}",
            "free some space, or name another folder with TMPDIR",
        ) from error
    with folder as path:
        yield Path(path)
