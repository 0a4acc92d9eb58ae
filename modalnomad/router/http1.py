"""Heads of HTTP/1.x messages, strictly (RFC 9112): a head has one reading or none. Pure.

httptools splits a head into fields; what it lets through and others might read differently is refused here: bare CR or
LF, obs-fold, control bytes, an absent or repeated Host, Transfer-Encoding in HTTP/1.0 or of any coding but `chunked`, a
target that is not plain ASCII. It is given exactly the bytes of one head, so bodies are never its business (see
`framing.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import httptools

from modalnomad.router.replies import Reply

Headers = list[tuple[bytes, bytes]]

HEAD_END: Final = b"\r\n\r\n"

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,253})(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)([^#]*)")
_CONTROL: Final = bytes(range(9)) + b"\x0b\x0c" + bytes(range(14, 32)) + b"\x7f"
_LOOSE_BREAK = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_REFUSED_METHODS = frozenset({b"CONNECT", b"TRACE", b"PRI"})


class BadAnswer(Exception):
    """A replica's answer is not HTTP/1.1 as RFC 9112 has it."""


@dataclass(slots=True)
class RequestHead:
    """`headers` has lower-case names, in order. `target` is in origin form (or `*`), byte for byte as it came."""

    method: bytes
    target: bytes
    minor: int
    """1 for HTTP/1.1, 0 for HTTP/1.0."""
    headers: Headers
    host: str
    """Lower-case, without port or trailing dot; empty: HTTP/1.0 without a Host."""
    authority: bytes
    """Host as the client wrote it, port included."""
    length: int | None
    """Bytes of the body; None: chunked."""
    keep_alive: bool
    expects_continue: bool
    connection: frozenset[bytes]
    """Options of the Connection header, lower-case."""

    @property
    def path(self) -> bytes:
        """The target up to `?`."""
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """The target after `?`."""
        return self.target.partition(b"?")[2]


@dataclass(slots=True)
class ResponseHead:
    """`headers` keep the names as the replica wrote them."""

    status: int
    reason: bytes
    headers: Headers
    framing: Literal["none", "length", "chunked", "close"]
    length: int
    """Bytes of the body when framing is `length`."""
    keep_alive: bool
    connection: frozenset[bytes]


class _Fields:
    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))


def malformed(detail: str) -> Reply:
    """400 `bad_request`, after which the connection closes: where the next message starts is unknown."""
    return Reply(400, "bad_request", detail, close=True)


def parse_request(head: bytes) -> RequestHead:
    """`head` ends with its empty line and has nothing after it. Raises Reply 400, 501 or 505, all closing."""
    line = _REQUEST_LINE.fullmatch(head, 0, head.find(b"\r\n"))
    if line is None:
        raise malformed("The request line is not METHOD SP TARGET SP HTTP/1.1.")
    method, target, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise Reply(505, "version_not_supported", "Only HTTP/1.1 and HTTP/1.0 are spoken here.", close=True)
    if (problem := loose(head)) is not None:
        raise malformed(problem)
    if method in _REFUSED_METHODS:
        raise Reply(501, "not_implemented", f"{method.decode()} is not served here.", close=True)
    reader = _Fields()
    try:
        httptools.HttpRequestParser(reader).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # what follows an Upgrade is decided elsewhere
    except httptools.HttpParserInvalidMethodError:
        raise Reply(501, "not_implemented", "The method is not known here.", close=True) from None
    except httptools.HttpParserError as error:
        raise malformed(f"The request head is malformed: {error}.") from None
    return _request(method, target, int(minor), [(name.lower(), value) for name, value in reader.fields])


def _request(method: bytes, target: bytes, minor: int, headers: Headers) -> RequestHead:
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: frozenset[bytes] = frozenset()
    expects = False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"connection":
            connection |= tokens(value)
        elif name == b"expect":
            expects = expects or value.lower() == b"100-continue"
    if len(hosts) > 1 or (minor == 1 and not hosts):
        raise malformed("A request has exactly one Host header.")
    authority = hosts[0] if hosts else b""
    host = host_name(authority) if hosts else ""
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        authority, target = _split_absolute(target)
        host = host_name(authority)
    elif b"#" in target:
        raise malformed("The request target has a fragment.")
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        headers=headers,
        host=host,
        authority=authority,
        length=_request_length(lengths, codings, minor),
        keep_alive=minor == 1 and b"close" not in connection,
        expects_continue=expects and minor == 1,
        connection=connection,
    )


def _request_length(lengths: list[bytes], codings: list[bytes], minor: int) -> int | None:
    """RFC 9112, 6.3, without its leniencies."""
    if codings:
        if minor == 0 or lengths or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise malformed("Transfer-Encoding is `chunked`, once, in HTTP/1.1, without Content-Length; or absent.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise malformed("Content-Length is one decimal number, once.")
    return int(lengths[0])


def _split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """`http://host/path?query` → host and origin form (RFC 9112, 3.2.2: the target's host is the one that counts)."""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise malformed("The request target is neither a path nor an absolute http URL.")
    authority, rest = absolute.groups()
    return authority, rest if rest.startswith(b"/") else b"/" + rest


def host_name(authority: bytes) -> str:
    """`Host` value → lower-case name without port or trailing dot. Raises Reply 400."""
    match = _HOST.fullmatch(authority)
    if match is None:
        raise malformed("The Host is not a host name with an optional port.")
    return match[1].decode("ascii").lower().removesuffix(".")


def loose(head: bytes) -> str | None:
    """What no strict reader accepts anywhere in a head; None: nothing found."""
    if len(head.translate(None, _CONTROL)) != len(head):
        return "The head has control characters."
    breaks = head.count(b"\r\n")
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks:
        return "The head has a CR or LF that is not part of a line end."
    if b"\r\n " in head or b"\r\n\t" in head:
        return "The head has a folded line."
    return None


def hopeless(part: bytes) -> str | None:
    """What already makes an unfinished head malformed; its last byte may be a CR whose LF is still to come."""
    if len(part.translate(None, _CONTROL)) != len(part):
        return "The head has control characters."
    if _LOOSE_BREAK.search(part[:-1] if part.endswith(b"\r") else part) is not None:
        return "The head has a CR or LF that is not part of a line end."
    return None


def parse_response(head: bytes, method: bytes) -> ResponseHead:
    """`method` is the request's: a HEAD has no body whatever its answer says. Raises BadAnswer."""
    line = _STATUS_LINE.fullmatch(head, 0, head.find(b"\r\n"))
    if line is None:
        raise BadAnswer(f"not a status line: {head[:64]!r}")
    if (problem := loose(head)) is not None:
        raise BadAnswer(problem)
    reader = _Fields()
    try:
        httptools.HttpResponseParser(reader).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadAnswer(str(error)) from None
    status, minor = int(line[2]), int(line[1])
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: frozenset[bytes] = frozenset()
    for name, value in reader.fields:
        lower = name.lower()
        if lower == b"content-length":
            lengths.append(value)
        elif lower == b"transfer-encoding":
            codings.append(value)
        elif lower == b"connection":
            connection |= tokens(value)
    framing, length = _response_framing(lengths, codings, minor)
    if method == b"HEAD" or status < 200 or status in {204, 304}:
        framing = "none"
    keep_alive = minor == 1 and b"close" not in connection and framing != "close"
    return ResponseHead(status, line[3] or b"", reader.fields, framing, length, keep_alive, connection)


def _response_framing(
    lengths: list[bytes], codings: list[bytes], minor: int
) -> tuple[Literal["none", "length", "chunked", "close"], int]:
    if codings:
        if lengths or minor == 0 or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadAnswer("Transfer-Encoding is not `chunked` alone")
        return "chunked", 0
    if not lengths:
        return "close", 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise BadAnswer("Content-Length is not one decimal number")
    return "length", int(lengths[0])


def tokens(value: bytes) -> frozenset[bytes]:
    """A comma-separated list of tokens, lower-case."""
    return frozenset(token for part in value.split(b",") if (token := part.strip(b" \t").lower()))
