"""Telling systemd (or whoever else started this) how it goes: sd_notify(3)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

logger = logging.getLogger("modalnomad.up")

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHED = "WATCHDOG_PID"
PATIENCE = 15.0
"""Seconds past the orderly end's own limit after which it hangs."""


class Notifier:
    """Takes its variables out of the environment: no process that is started from here speaks for this one."""

    def __init__(self) -> None:
        self._address = os.environ.pop(SOCKET, "")
        watched = os.environ.pop(WATCHED, "") in {"", str(os.getpid())}
        interval = os.environ.pop(WATCHDOG, "")
        self.alive_every = int(interval) / 2e6 if watched and interval.isdecimal() else 0.0
        """Seconds between two signs of life that somebody waits for; 0: nobody does."""

    def ready(self, status: str) -> None:
        """It serves."""
        self.tell("READY=1", f"STATUS={status}")

    def stopping(self, status: str, seconds: float) -> None:
        """It ends, and that may take so long."""
        limit = int((seconds + PATIENCE) * 1e6)
        self.tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={limit}")

    async def keep_alive(self) -> None:
        """Signs of life, until cancelled: a loop that hangs gives none."""
        while self.alive_every:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.alive_every)

    def tell(self, *words: str) -> None:
        """Nobody wants to know: nothing happens."""
        if not self._address:
            return
        # An abstract address is written with a leading @.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.connect(address)
                sender.send("\n".join(words).encode())
        except OSError as error:
            logger.warning("cannot tell %s how it goes: %s", self._address, error)
