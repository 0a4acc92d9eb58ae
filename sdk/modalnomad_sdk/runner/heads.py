"""Request heads as the relay reads them: the router has checked them, so anything unusual is refused (RFC 9112)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modalnomad_sdk.contract import PRIVATE_HEADER_PREFIX

LIMIT = 512 * 1024
"""Bytes."""

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_PRIVATE = PRIVATE_HEADER_PREFIX.encode()


class BadHead(ValueError):
    """Not a head that our router would send."""


@dataclass(frozen=True)
class Head:
    """A parsed request head. Field names in lower case; `lines` are the fields as they came."""

    method: str
    target: bytes
    start: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    lines: tuple[bytes, ...]

    @property
    def path(self) -> str:
        return self.target.partition(b"?")[0].decode("latin-1")

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]

    def get(self, name: bytes) -> bytes:
        """The first field of that name; empty when there is none."""
        return next((value for found, value in self.fields if found == name), b"")

    @property
    def is_upgrade(self) -> bool:
        tokens = self.get(b"connection").lower().split(b",")
        return bool(self.get(b"upgrade")) and any(token.strip() == b"upgrade" for token in tokens)

    def for_user(self) -> bytes:
        """The head as the user's server gets it: without our fields, and for one request only."""
        kept = [self.start]
        for (name, _), line in zip(self.fields, self.lines, strict=True):
            if name.startswith(_PRIVATE) or (name == b"connection" and not self.is_upgrade):
                continue
            kept.append(line)
        if not self.is_upgrade:
            kept.append(b"Connection: close")
        return b"\r\n".join([*kept, b"", b""])


def parse(data: bytes | bytearray) -> tuple[Head, bytes] | None:
    """The head at the start of `data` and what follows it; None: it is not all there.

    Raises:
        BadHead: it is too long, or nothing our router sends.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 or end > LIMIT:
        if len(data) > LIMIT:
            raise BadHead(f"the head is longer than {LIMIT} bytes")
        return None
    start, *lines = bytes(data[:end]).split(b"\r\n")
    first = _REQUEST_LINE.fullmatch(start)
    if first is None:
        raise BadHead("not a request line")
    fields = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadHead("not a header field")
        fields.append((field[1].lower(), field[2]))
    head = Head(first[1].decode("ascii"), first[2], start, tuple(fields), tuple(lines))
    return head, bytes(data[end + 4 :])
