"""Telling systemd (or whoever else started this) how it goes: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger("modalnomad.up")

VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """Takes the address out of the environment: no process that is started from here speaks for this one."""

    def __init__(self) -> None:
        self._address = os.environ.pop(VARIABLE, "")

    def tell(self, *words: str) -> None:
        """`READY=1`, `STOPPING=1`, `STATUS=…`. Nobody wants to know: nothing happens."""
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
            logger.warning("cannot tell %s that it goes on: %s", self._address, error)
