"""When a certificate is valid: RFC 5280, section 4.1, read from its DER form."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

SEQUENCE: Final = 0x30
EXPLICIT_VERSION: Final = 0xA0
UTC_TIME: Final = 0x17


def validity(der: bytes) -> tuple[float, float]:
    """Not before, not after; Unix time. Raises ValueError for what is no certificate."""
    try:
        certificate = _inside(der, 0)
        rest = _inside(der, certificate[0])
        at = rest[0]
        if der[at] == EXPLICIT_VERSION:
            at = _inside(der, at)[1]
        for _ in ("serial number", "signature", "issuer"):
            at = _inside(der, at)[1]
        first, _ = _inside(der, at)
        second = _inside(der, first)[1]
        return _time(der, first), _time(der, second)
    except IndexError:
        raise ValueError("it is cut off") from None


def _inside(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends."""
    length, at = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(der[at : at + count], "big"), at + count
    if at + length > len(der):
        raise ValueError("it is cut off")
    return at, at + length


def _time(der: bytes, at: int) -> float:
    begin, end = _inside(der, at)
    text = der[begin:end].decode("ascii")
    if der[at] == UTC_TIME:
        # Two digits: 50 and more are of the last century (RFC 5280, 4.1.2.5.1).
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
