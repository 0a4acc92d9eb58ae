"""WebSockets: the handshake is checked, what follows is passed through byte for byte (RFC 6455).

A few small objects and two transports are all an open WebSocket costs. Frames are never looked into, only counted off,
so that a router that stops can say goodbye between two of them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import Final, cast

from modalnomad.router.channel import unread
from modalnomad.router.frames import GOING_AWAY, SERVICE_RESTART, Frames, close_frame
from modalnomad.router.gate import Gate
from modalnomad.router.http1 import BadAnswer, Headers, RequestHead, ResponseHead, malformed, tokens
from modalnomad.router.replies import Reply

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
HALF_CLOSED_TIME: Final = 30.0
"""Seconds the second side has to close after the first one did."""

GOODBYE_TIME: Final = 1.0
"""Seconds both sides have to answer the Close of a router that stops."""


def wanted(head: RequestHead) -> bool:
    """The client asks for a WebSocket. Any other Upgrade is ignored, as RFC 9110 (7.8) allows."""
    return (
        b"upgrade" in head.connection
        and head.minor == 1
        and any(b"websocket" in tokens(value) for value in _all(head.headers, b"upgrade"))
    )


def check_request(head: RequestHead) -> None:
    """RFC 6455, 4.2.1. Raises Reply 400 or 426."""
    if head.method != b"GET" or head.length != 0:
        raise malformed("A WebSocket handshake is a GET without a body.")
    keys = _all(head.headers, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise malformed("Sec-WebSocket-Key is not one base64 value of 16 bytes.")
    if _all(head.headers, b"sec-websocket-version") != [b"13"]:
        fields = ((b"sec-websocket-version", b"13"), (b"upgrade", b"websocket"), (b"connection", b"Upgrade"))
        raise Reply(426, "bad_request", "Only version 13 of the WebSocket protocol is spoken here.", headers=fields)


def check_response(request: RequestHead, response: ResponseHead) -> None:
    """RFC 6455, 4.1. Raises BadAnswer: the client would not accept it either."""
    headers = [(name.lower(), value) for name, value in response.headers]
    if b"upgrade" not in response.connection or b"websocket" not in tokens(b",".join(_all(headers, b"upgrade"))):
        raise BadAnswer("101 without `Upgrade: websocket`")
    key = _all(request.headers, b"sec-websocket-key")[0]
    # The protocol's own digest; it proves understanding, not identity.
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    if _all(headers, b"sec-websocket-accept") != [accept]:
        raise BadAnswer("101 with a wrong Sec-WebSocket-Accept")
    if _all(headers, b"sec-websocket-extensions"):
        raise BadAnswer("101 with an extension that was not offered")


def _all(headers: Headers, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False


class _End(asyncio.Protocol):
    """One side of a tunnel: what it reads goes to the other side's transport."""

    __slots__ = ("eof", "frames", "other", "passed", "transport", "tunnel")

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport) -> None:
        self.tunnel = tunnel
        self.transport = transport
        self.other = cast("_End", None)
        self.eof = False
        self.passed = 0
        self.frames = Frames()

    def data_received(self, data: bytes) -> None:
        """Pass on; once we said goodbye, only look for the answer."""
        self.frames.follow(data)
        if self.tunnel.leaving:
            if self.frames.closed:
                self.transport.close()
            return
        self.passed += len(data)
        if not self.other.transport.is_closing():  # uvloop raises
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Pass on; the other direction stays open."""
        self.eof = True
        if self.tunnel.leaving:
            return False
        self.tunnel.half_closed()
        if self.other.eof or not self.other.transport.can_write_eof():
            self.other.transport.close()
            return False
        if not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return True

    def say_goodbye(self, goodbye: bytes, heard: Frames) -> None:
        """The last words on this side, if they fit in there; `heard`: what it got so far."""
        if self.transport.is_closing():
            return
        fits = heard.between and not self.other.eof  # its end was passed on: nothing can be written after it
        if fits:
            self.transport.write(goodbye)
            self.transport.resume_reading()
        if not fits or self.frames.closed or self.eof:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Ends both. It may have said its last words before it closed, and what failed was to pass something on."""
        if isinstance(error, (BrokenPipeError, ConnectionResetError)):
            for data in unread(self.transport):
                if data:
                    self.data_received(data)
        self.tunnel.lost(self, error)

    def pause_writing(self) -> None:
        """This side reads too slowly: read less from the other."""
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It caught up."""
        if not self.other.eof and not self.other.transport.is_closing():
            self.other.transport.resume_reading()


class Tunnel:
    """Client and replica, tied together until both are closed, or until the gate's clock says `until`; a guest of the
    gate."""

    __slots__ = ("_client", "_gate", "_loop", "_open", "_replica", "_timer", "_until", "done", "leaving")

    def __init__(self, gate: Gate, client: asyncio.Transport, replica: asyncio.Transport, until: float) -> None:
        self._gate = gate
        self._until = until
        self._loop = asyncio.get_running_loop()
        self._client = _End(self, client)
        self._replica = _End(self, replica)
        self._client.other, self._replica.other = self._replica, self._client
        self._open = 2
        self.leaving = False
        """The router said goodbye to both."""
        self._timer: asyncio.TimerHandle | None = None
        self.done: asyncio.Future[None] = self._loop.create_future()
        gate.enter(self)
        gate.counters.websockets += 1

    def start(self, from_client: bytes, from_replica: bytes) -> None:
        """Take both transports over, neither of them lost yet, with what was read from them already."""
        for end, early in ((self._client, from_client), (self._replica, from_replica)):
            end.passed += len(early)
            end.frames.follow(early)
            if early and not end.other.transport.is_closing():
                end.other.transport.write(early)
            end.transport.set_protocol(end)
        for end in (self._client, self._replica):
            if not end.transport.is_closing():
                end.transport.resume_reading()
        if self._gate.draining:
            self.drain()

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes from the client, bytes from the replica."""
        return self._client.passed, self._replica.passed

    def half_closed(self) -> None:
        """One side sends no more: the other has a while to say goodbye."""
        if self._timer is None:
            self._timer = self._loop.call_later(HALF_CLOSED_TIME, self.abort)

    def lost(self, end: _End, error: Exception | None) -> None:
        """One side is closed: so will be the other, after what is already written to it."""
        self._open -= 1
        if self.leaving:
            pass  # the other was told by us, and may still answer
        elif error is None or (end is self._replica and isinstance(error, (BrokenPipeError, ConnectionResetError))):
            end.other.transport.close()
        else:
            end.other.transport.abort()
        self._settle()

    def _settle(self) -> None:
        if self._open:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._gate.counters.websockets -= 1
        self._gate.leave(self)
        if not self.done.done():  # whoever awaited it may have been cancelled
            self.done.set_result(None)

    # --- Guest ----------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A WebSocket has no end of its own that a stopping router could wait for; only the goodbye counts."""
        return self.leaving

    def tick(self, now: float) -> None:
        """Over, up to a second late: a timer of its own would cost as much memory as all the rest here."""
        if now >= self._until:
            self.abort()

    def drain(self) -> None:
        """Say goodbye to both sides, after what is written, and give them a moment to answer."""
        if self.leaving:
            return
        self.leaving = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(GOODBYE_TIME, self.abort)
        client, replica = self._client, self._replica
        client.say_goodbye(close_frame(SERVICE_RESTART, masked=False), replica.frames)
        replica.say_goodbye(close_frame(GOING_AWAY, masked=True), client.frames)

    def abort(self) -> None:
        """Close both sides now, also one that is closing already: that waits for a peer that may never read."""
        for end in (self._client, self._replica):
            end.transport.abort()
