"""Other Pythons of this machine."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = "3.10"
"""The oldest Python the SDK promises to run on."""


@functools.cache
def oldest_python() -> str | None:
    """An interpreter of that version: on PATH, or installed beside the one that runs the tests. None: there is none."""
    name = f"python{OLDEST}"
    found = shutil.which(name)
    beside = sorted(Path(sys.base_prefix).parent.glob(f"*{OLDEST}*/bin/{name}"))
    for candidate in [*([found] if found else []), *map(str, beside)]:
        # A shim on PATH may name a version that is not chosen here.
        works = subprocess.run([candidate, "-c", "import sys"], capture_output=True, timeout=30, check=False)
        if works.returncode == 0:
            return candidate
    return None
