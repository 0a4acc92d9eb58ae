"""Header fields on their way through: what is removed, what is added, who the client is. Pure.

Towards the replica everything hop-by-hop goes (RFC 9110, 7.6.1), and everything that only the platform may say:
`Modalnomad-*`, `X-Forwarded-*`, `X-Request-Id`. A name with an underscore that turns into one of those in a WSGI
environ goes too. Framing is written anew, never copied.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from modalnomad_sdk import contract

from modalnomad.router.http1 import Headers, RequestHead, ResponseHead, host_name
from modalnomad.router.replies import Reply

_PRIVATE: Final = contract.PRIVATE_HEADER_PREFIX.encode()
_TICKET: Final = contract.HEADER_TICKET.encode()
_CLIENT: Final = contract.HEADER_CLIENT.encode()
_ENDPOINT: Final = contract.HEADER_ENDPOINT.encode()
_REQUEST_ID: Final = contract.HEADER_REQUEST_ID.encode()

HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)
_FRAMING: Final = frozenset({b"content-length", b"host"})
_OURS: Final = frozenset(
    {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", _REQUEST_ID, b"expect", b"proxy-authorization"}
)
# `Proxy` becomes HTTP_PROXY in a WSGI or CGI environ, which HTTP clients take for a setting.
_REQUEST_DROPPED: Final = HOP_BY_HOP | _FRAMING | _OURS | {b"proxy"}
_PROXY_ONLY: Final = frozenset({b"forwarded", b"x-real-ip"})
_RESPONSE_DROPPED: Final = HOP_BY_HOP | {b"content-length", b"proxy-authenticate", _REQUEST_ID}
_CREDENTIALS: Final = frozenset({b"modal-key", b"modal-secret"})
_TRAILER_DROPPED: Final = (
    _REQUEST_DROPPED
    | _CREDENTIALS
    | {
        b"authorization",
        b"set-cookie",
        b"trailer",
        b"content-encoding",
        b"content-type",
        b"content-range",
    }
)

_SUSPICIOUS: Final = frozenset(b"mxf")
"""First letters of the names `_is_private` can refuse."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_SCHEMES = frozenset({b"http", b"https"})

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Trusted:
    """Proxies whose `X-Forwarded-*` counts. Raises ValueError naming an entry that is no address or network."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(entry, strict=False) for entry in entries)

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection."""

    address: str
    port: int
    scheme: bytes = b"http"
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Who sent a request, after trusted proxies were looked through. `port` is 0 where only a proxy knows it."""

    address: str
    port: int
    forwarded_for: bytes
    proto: bytes
    host: bytes


def origin(head: RequestHead, peer: Peer, trusted: Trusted) -> Origin:
    """From a trusted peer, the client is the last address in X-Forwarded-For that is not a trusted proxy itself."""
    here = peer.address.encode()
    if not peer.trusted:
        return Origin(peer.address, peer.port, here, peer.scheme, head.authority)
    hops = [hop for value in _all(head.headers, b"x-forwarded-for") if (hop := value.strip(b" \t"))]
    address, port = peer.address, peer.port
    for hop in reversed(hops):
        found = _address(hop)
        if found is None:
            break
        address, port = found, 0
        if found not in trusted:
            break
    protos = _all(head.headers, b"x-forwarded-proto")
    proto = protos[-1].strip(b" \t").lower() if protos else b""
    hosts = _all(head.headers, b"x-forwarded-host")
    host = hosts[-1].strip(b" \t") if hosts else b""
    return Origin(
        address,
        port,
        b", ".join([*hops, here]),
        proto if proto in _SCHEMES else peer.scheme,
        host if _is_host(host) else head.authority,
    )


def _all(headers: Headers, wanted: bytes) -> list[bytes]:
    return [part for name, value in headers if name == wanted for part in value.split(b",")]


def _address(hop: bytes) -> str | None:
    try:
        return str(ipaddress.ip_address(hop.decode("ascii").strip("[]")))
    except ValueError:
        return None


def _is_host(value: bytes) -> bool:
    try:
        host_name(value)
    except Reply:
        return False
    return True


def request_id(headers: Headers) -> bytes:
    """The client's own when it sent one sane token, else a new one of 32 hex digits."""
    sent = [value for name, value in headers if name == _REQUEST_ID]
    if len(sent) == 1 and _SANE_ID.fullmatch(sent[0]):
        return sent[0]
    return os.urandom(16).hex().encode()


@dataclass(frozen=True, slots=True)
class Passage:
    """What the platform says to the replica beside the client's own words."""

    origin: Origin
    request_id: bytes
    ticket: bytes = field(repr=False)
    endpoint: bytes
    strip: frozenset[bytes]
    """Lower-case names that carried the platform's credentials."""
    peer_trusted: bool = False
    websocket: bool = False
    close: bool = False
    """Ask for the connection's end after this answer."""


def to_replica(head: RequestHead, passage: Passage) -> bytes:
    """The request head as the replica gets it."""
    named = head.connection
    lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (head.method, head.target, head.authority or b"localhost")]
    sized = wants_trailers = False
    for name, value in head.headers:
        if name in _REQUEST_DROPPED:
            sized = sized or name == b"content-length"
            wants_trailers = wants_trailers or (name == b"te" and b"trailers" in value.lower())
            continue
        if name in passage.strip or name in named:
            continue
        if (name[0] in _SUSPICIOUS or b"_" in name) and _is_private(name, passage.peer_trusted):
            continue
        if passage.websocket and name == b"sec-websocket-extensions":
            continue  # frames pass untouched, so no extension may change what they mean (no RFC 7692)
        lines.append(b"%b: %b" % (name, value))
    if head.length is None:
        lines.append(b"transfer-encoding: chunked")
    elif sized:
        lines.append(b"content-length: %d" % head.length)
    if head.expects_continue and head.length != 0:
        lines.append(b"expect: 100-continue")
    who = passage.origin
    lines += [
        b"x-forwarded-for: " + who.forwarded_for,
        b"x-forwarded-proto: " + who.proto,
        b"x-forwarded-host: " + who.host,
        b"%b: %b" % (_REQUEST_ID, passage.request_id),
        b"%b: %b %d" % (_CLIENT, who.address.encode(), who.port),
        b"%b: %b" % (_ENDPOINT, passage.endpoint),
        b"%b: %b" % (_TICKET, passage.ticket),
    ]
    lines.extend(_request_connection(passage, wants_trailers))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _request_connection(passage: Passage, wants_trailers: bool) -> list[bytes]:
    if passage.websocket:
        return [b"connection: Upgrade\r\nupgrade: websocket"]
    options = [b"close"] if passage.close else []
    lines = []
    if wants_trailers:
        options.append(b"te")
        lines.append(b"te: trailers")
    if options:
        lines.append(b"connection: " + b", ".join(options))
    return lines


def _is_private(name: bytes, peer_trusted: bool) -> bool:
    if b"_" in name:
        name = name.replace(b"_", b"-")
        if name in _REQUEST_DROPPED or name in _CREDENTIALS:
            return True
    if name.startswith(_PRIVATE):
        return True
    return not peer_trusted and (name in _PROXY_ONLY or name.startswith(b"x-forwarded-"))


@dataclass(frozen=True, slots=True)
class Onward:
    """A response head as the client gets it, and how the body must be framed behind it."""

    head: bytes
    chunked: bool
    close: bool


def to_client(response: ResponseHead, request: RequestHead, request_id: bytes, *, close: bool) -> Onward:
    """`close`: the connection ends after this answer. A body of unknown length is chunked to HTTP/1.1 and ends with the
    connection to HTTP/1.0."""
    lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    bodyless = response.framing == "none"
    for name, value in response.headers:
        lower = name.lower()
        if lower in _RESPONSE_DROPPED:
            # To HEAD and in 304, Content-Length says what a GET would have had.
            if lower == b"content-length" and bodyless and response.status != 204:
                lines.append(b"content-length: " + value)
            continue
        if lower in response.connection or lower.startswith(_PRIVATE):
            continue
        lines.append(b"%b: %b" % (name, value))
    lines.append(b"%b: %b" % (_REQUEST_ID, request_id))
    chunked = False
    if response.framing == "length":
        lines.append(b"content-length: %d" % response.length)
    elif not bodyless:
        chunked = request.minor == 1
        close = close or not chunked
        if chunked:
            lines.append(b"transfer-encoding: chunked")
    if close:
        lines.append(b"connection: close")
    return Onward(b"\r\n".join(lines) + b"\r\n\r\n", chunked, close)


def interim_to_client(response: ResponseHead) -> bytes:
    """A 1xx head."""
    lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    for name, value in response.headers:
        lower = name.lower()
        if lower in HOP_BY_HOP or lower in response.connection or lower in _FRAMING or lower.startswith(_PRIVATE):
            continue
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def switch_to_client(response: ResponseHead, request_id: bytes) -> bytes:
    """The 101 of a WebSocket."""
    lines = [b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket"]
    for name, value in response.headers:
        lower = name.lower()
        if lower in _RESPONSE_DROPPED or lower in response.connection or lower.startswith(_PRIVATE):
            continue
        lines.append(b"%b: %b" % (name, value))
    lines.append(b"%b: %b" % (_REQUEST_ID, request_id))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def trailers(fields: Headers) -> Headers:
    """Without those that would change framing, routing or authentication after the fact (RFC 9110, 6.5.1)."""
    return [
        (name, value)
        for name, value in fields
        if (lower := name.lower()) not in _TRAILER_DROPPED and not _is_private(lower, peer_trusted=False)
    ]
