"""Where one WebSocket frame ends and the next begins (RFC 6455, 5.2): all a router needs to say goodbye between two."""

from __future__ import annotations

import os
import struct
from typing import Final

SERVICE_RESTART: Final = 1012
"""To clients: come back (IANA's registry of close codes)."""
GOING_AWAY: Final = 1001
"""To replicas, as if the client had left its page."""
_CLOSE: Final = 8
_TOO_MANY: Final = 256
"""Frames in one piece: whoever sends so small ones so fast is passed on, and not followed any longer."""


class Frames:
    """Follows one direction of a WebSocket. Payloads are never looked at."""

    __slots__ = ("_head", "_left", "closed", "lost")

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the present frame's payload that are still to come."""
        self._head = b""
        """The beginning of a frame's head."""
        self.closed = False
        """A Close frame has passed: nothing may follow it."""
        self.lost = False
        """Nobody knows any more where frames end."""

    @property
    def between(self) -> bool:
        """The last frame is complete, and another may follow."""
        return not (self._left or self._head or self.closed or self.lost)

    def follow(self, data: bytes) -> None:
        """What passes next."""
        if self.lost:
            return
        if self._head:
            data, self._head = self._head + data, b""
        size, at, count = len(data), self._left, 0
        while at < size:
            count += 1
            if count > _TOO_MANY:
                self.lost = True
                return
            length = data[at + 1] & 127 if at + 1 < size else 0
            extra = 2 if length == 126 else 8 if length == 127 else 0
            begin = at + 2 + extra + (4 if at + 1 < size and data[at + 1] & 128 else 0)
            if begin > size:
                self._head = data[at:]
                at = size
                break
            if extra:
                length = int.from_bytes(data[at + 2 : at + 2 + extra], "big")
            self.closed = self.closed or data[at] & 15 == _CLOSE
            at = begin + length
        self._left = at - size


def close_frame(code: int, *, masked: bool) -> bytes:
    """`masked`: as clients send it."""
    payload = struct.pack(">H", code)
    if not masked:
        return bytes((0x80 | _CLOSE, len(payload))) + payload
    mask = os.urandom(4)
    hidden = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes((0x80 | _CLOSE, 0x80 | len(payload))) + mask + hidden
