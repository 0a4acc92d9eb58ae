"""May replicas have network namespaces of their own on this machine?"""

from __future__ import annotations

import sys
from typing import Final

from modalnomad.embedded.child import run_quietly

PROBE_LIMIT: Final = 10.0
"""Seconds."""

_PROBE: Final = """
import ctypes, os, sys
NEWUSER, NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
sys.exit(0 if libc.unshare(NEWNET) == 0 or libc.unshare(NEWUSER | NEWNET) == 0 else 1)
"""


async def namespaces_allowed() -> bool:
    """Tried in a process of its own; as root, else in a user namespace. Takes a few hundredths of a second."""
    if sys.platform != "linux":
        return False
    return await run_quietly([sys.executable, "-I", "-S", "-c", _PROBE], PROBE_LIMIT) == 0
