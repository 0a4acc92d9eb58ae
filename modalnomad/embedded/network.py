"""How fixed ports of `web_server` are kept apart on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from typing import Final, Literal

from modalnomad.embedded.child import run_quietly

PROBE_LIMIT: Final = 10.0
"""Seconds."""
TUNNELS: Final = "/dev/net/tun"
"""What pasta connects a namespace with."""

_PROBE: Final = """
import ctypes, os, sys
NEWUSER, NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
sys.exit(0 if libc.unshare(NEWNET) == 0 or libc.unshare(NEWUSER | NEWNET) == 0 else 1)
"""

Mode = Literal["namespace", "exclusive", "host"]


class Network:
    """The setting, and what the machine allows: looked at once, when the first fixed port asks for it."""

    def __init__(self, setting: Literal["auto", "namespace", "exclusive", "host"]) -> None:
        self.setting = setting
        self._mode: Mode | None = None if setting == "auto" else setting
        self._looking = asyncio.Lock()

    @property
    def known(self) -> Mode | None:
        """The mode; None: nobody has asked yet."""
        return self._mode

    async def mode(self) -> Mode:
        """Of every replica with a fixed port."""
        async with self._looking:
            if self._mode is None:
                self._mode = "namespace" if await namespaces_allowed() else "exclusive"
            return self._mode

    async def described(self, path: str | None) -> str:
        """The mode in words; `path`: where replicas look for programs."""
        mode = await self.mode()
        if mode == "namespace":
            return f"each replica with a web_server gets a network namespace of its own, {_outbound(path)}"
        if mode == "host":
            return (
                'network = "host": a web_server is on this machine\'s network, past the router too, on whatever '
                "address it binds; two replicas cannot have one port"
            )
        why = "the settings say so" if self.setting == "exclusive" else "this machine allows no network namespaces"
        return (
            f"a web_server's port belongs to one replica at a time ({why}) and is on this machine's network, past the "
            "router too, on whatever address the server binds"
        )


def _outbound(path: str | None) -> str:
    if shutil.which("pasta", path=path) is None:
        reach = "nor the network outside: for that, install pasta (Debian: passt)"
    elif not os.access(TUNNELS, os.R_OK | os.W_OK):
        reach = f"nor the network outside: pasta may not use {TUNNELS}"
    else:
        return "from which it reaches the network outside (through pasta), but no service on this machine's 127.0.0.1"
    return f"from which it reaches no service on this machine's 127.0.0.1, {reach}"


async def namespaces_allowed() -> bool:
    """Tried in a process of its own; as root, else in a user namespace. Takes a few hundredths of a second."""
    if sys.platform != "linux":
        return False
    return await run_quietly([sys.executable, "-I", "-S", "-c", _PROBE], PROBE_LIMIT) == 0
