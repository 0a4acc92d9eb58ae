"""What a replica writes → lines with the request they belong to (contract.LOG_TAG_OPEN)."""

from __future__ import annotations

from typing import Final

from modalnomad_sdk.contract import LOG_TAG_CLOSE, LOG_TAG_OPEN

LINE_LIMIT: Final = 64 * 1024
"""Bytes of one line; a longer one goes on in the next."""
TAG_LIMIT: Final = 256
"""Bytes of a tag."""
_OPEN: Final = LOG_TAG_OPEN.encode()
_CLOSE: Final = LOG_TAG_CLOSE.encode()


class LineSplitter:
    """Bytes of one stream → (request id, text)."""

    def __init__(self) -> None:
        self._rest = b""
        self._request_id: str | None = None
        """Of the line whose beginning was given out already."""
        self._continued = False

    def feed(self, data: bytes) -> list[tuple[str | None, str]]:
        """The lines that are complete now; over-long ones in pieces."""
        *whole, rest = (self._rest + data).split(b"\n")
        lines = [piece for line in whole for piece in self._pieces(line, complete=True)]
        lines += self._pieces(rest, complete=False)
        return lines

    def end(self) -> list[tuple[str | None, str]]:
        """What is left when the stream ends without a newline."""
        rest, self._rest = self._rest, b""
        return self._pieces(rest, complete=True) if rest else []

    def _pieces(self, line: bytes, *, complete: bool) -> list[tuple[str | None, str]]:
        pieces = []
        while len(line) > LINE_LIMIT:
            cut = _character_boundary(line, LINE_LIMIT)
            pieces.append(self._line(line[:cut]))
            line, self._continued = line[cut:], True
        if complete:
            # A newline right after a cut ends the line that was cut; it is no empty line of its own.
            if line or not self._continued:
                pieces.append(self._line(line.removesuffix(b"\r")))
            self._rest, self._continued, self._request_id = b"", False, None
        else:
            self._rest = line
        return pieces

    def _line(self, line: bytes) -> tuple[str | None, str]:
        if not self._continued and line.startswith(_OPEN):
            end = line.find(_CLOSE, 1, TAG_LIMIT)
            if end > 0:
                self._request_id = line[1:end].decode("utf-8", "replace")
                line = line[end + 1 :]
        return self._request_id, line.decode("utf-8", "replace")


def _character_boundary(line: bytes, cut: int) -> int:
    """The last place at or before `cut` that is not inside a UTF-8 character."""
    for back in range(4):
        if line[cut - back] & 0xC0 != 0x80:
            return cut - back
    return cut
