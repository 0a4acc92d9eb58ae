"""Bodies of HTTP/1.x messages: from bytes off a socket to payload, and where the message ends. Pure.

A decoder is fed what arrived and returns payload; once `done`, `rest` holds the bytes after the message.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from modalnomad.router.http1 import Headers

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LINE_LIMIT: Final = 1024
_TRAILER_LIMIT: Final = 16 * 1024


class FramingError(Exception):
    """The body is not framed as its head promised."""


class Decoder(Protocol):
    """See the module. `trailers` is only ever filled by chunked bodies."""

    done: bool
    rest: bytes
    trailers: Headers

    def feed(self, data: bytes) -> bytes:
        """Payload in `data`. Raises FramingError. Not called again once done."""

    def finish(self) -> None:
        """The sender closed. Raises FramingError when the message was not at its end."""


class Counted:
    """Content-Length (0 included)."""

    __slots__ = ("done", "left", "rest", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest = b""
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """See Decoder."""
        if len(data) > self.left:
            data, self.rest = data[: self.left], data[self.left :]
        self.left -= len(data)
        self.done = self.left == 0
        return data

    def finish(self) -> None:
        """See Decoder."""
        if not self.done:
            raise FramingError(f"{self.left} bytes of the body are missing")


class UntilClose:
    """A response that ends with its connection."""

    __slots__ = ("done", "rest", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """See Decoder."""
        return data

    def finish(self) -> None:
        """See Decoder."""
        self.done = True


class Chunked:
    """RFC 9112, 7.1, strictly: CRLF only, extensions dropped, no whitespace around the size."""

    __slots__ = ("_held", "_left", "_state", "_trailer_size", "done", "rest", "trailers")

    def __init__(self) -> None:
        self._held = b""
        self._left = 0
        self._state = _SIZE
        self._trailer_size = 0
        self.done = False
        self.rest = b""
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """See Decoder."""
        if self._state == _DATA and len(data) < self._left:
            self._left -= len(data)
            return data
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        position = 0
        while not self.done:
            if self._state == _DATA:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._state = _AFTER_DATA
            elif self._state == _AFTER_DATA:
                end = data[position : position + 2]
                if len(end) < 2 and b"\r\n".startswith(end):
                    self._held = end
                    break
                if end != b"\r\n":
                    raise FramingError("a chunk is longer than its size says")
                position += 2
                self._state = _SIZE
            else:
                line, position = self._line(data, position)
                if line is None:
                    break
                self._take(line)
        if self.done:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, data: bytes, position: int) -> tuple[bytes | None, int]:
        """The next line and where the one after it starts; None: it is not all here, and held."""
        end = data.find(b"\n", position)
        if (end if end >= 0 else len(data)) - position > _LINE_LIMIT * (1 if self._state == _SIZE else 8):
            raise FramingError("a line between chunks is too long")
        if end < 0:
            self._held = data[position:]
            return None, len(data)
        if end == position or data[end - 1] != 0x0D:
            raise FramingError("a line between chunks does not end with CRLF")
        return data[position : end - 1], end + 1

    def _take(self, line: bytes) -> None:
        if self._state == _SIZE:
            size = _CHUNK_LINE.fullmatch(line)
            if size is None:
                raise FramingError("a chunk's size is not a hexadecimal number")
            self._left = int(size[1], 16)
            self._state = _DATA if self._left else _TRAILERS
        elif not line:
            self.done = True
        else:
            field = _FIELD.fullmatch(line)
            self._trailer_size += len(line)
            if field is None or self._trailer_size > _TRAILER_LIMIT:
                raise FramingError("the trailers are malformed or too long")
            self.trailers.append((field[1], field[2].rstrip(b" \t")))

    def finish(self) -> None:
        """See Decoder."""
        if not self.done:
            raise FramingError("the last chunk is missing")


_SIZE: Final = 0
_DATA: Final = 1
_AFTER_DATA: Final = 2
_TRAILERS: Final = 3


def encode_chunk(payload: bytes) -> bytes:
    """One chunk; `payload` is not empty."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def encode_end(trailers: Headers) -> bytes:
    """The last chunk and the trailers."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in trailers) + b"\r\n"
