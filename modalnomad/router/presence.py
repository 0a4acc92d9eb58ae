"""Is the other end of a TCP connection still there? For a transport that is not reading, or has seen an end of file."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Final, Literal

_TCP_CLOSE: Final = 7
_TCP_CLOSE_WAIT: Final = 8

Presence = Literal["there", "half_closed", "gone"]


def presence(transport: asyncio.Transport) -> Presence:
    """`half_closed`: the peer sent its end of file; only Linux tells that while nobody reads. `gone`: the connection
    was reset, so nothing we write arrives."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return "there"
    try:
        if sys.platform == "linux" and sock.family != socket.AF_UNIX:
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            if state == _TCP_CLOSE:
                return "gone"
            if state == _TCP_CLOSE_WAIT:
                return "half_closed"
        elif sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return "gone"
    except OSError:
        return "gone"
    return "there"
