"""One request and its answer: body in, response out, whatever carries them.

`Exchange` decodes the body as it comes, keeps its beginning so that it can be given to a second replica, and frames the
answer. Nothing here waits: flow control is `link.update_reading` one way and `Partner.pause_response` the other.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from modalnomad.model.replica import ReplicaKey
from modalnomad.router import headers
from modalnomad.router.framing import Chunked, Counted, Decoder, FramingError, encode_chunk, encode_end
from modalnomad.router.headers import Origin, Peer
from modalnomad.router.http1 import Headers, RequestHead, ResponseHead, malformed
from modalnomad.router.problem import render
from modalnomad.router.replies import Answer, Reply
from modalnomad.router.telemetry import Meter

KEPT: Final = 64 * 1024
"""Bytes of a body that are taken off the socket while the request waits, and kept until an answer comes."""


class Partner(Protocol):
    """Who the body goes to and the response comes from."""

    def on_body(self, payload: bytes) -> None:
        """Never empty."""

    def on_body_end(self, trailers: Headers) -> None:
        """The body is complete."""

    def on_body_failed(self, reply: Reply) -> None:
        """It never will be: malformed, too large, or the client stopped in the middle."""

    def pause_response(self) -> None:
        """The client reads too slowly."""

    def resume_response(self) -> None:
        """It caught up."""


class Link(Protocol):
    """The connection a request came by."""

    @property
    def closing(self) -> bool:
        """No further request is taken on it."""

    @property
    def writing_paused(self) -> bool:
        """The client reads too slowly."""

    def now(self) -> float:
        """The router's clock."""

    def write(self, data: bytes) -> None:
        """To the client, in order."""

    def update_reading(self) -> None:
        """What `wants_body` says may have changed."""

    def fail_waiting(self) -> None:
        """`failure` was set while nobody took the body: end the waiting."""

    def abort(self) -> None:
        """Cut the connection: the client must not take what it got for a whole answer."""

    def hand_over(self) -> tuple[asyncio.Transport, bytes]:
        """Give the transport away, with what was read behind the request."""


class Exchange:
    """See the module."""

    __slots__ = (
        "_chunked", "_decoder", "_held", "_held_back", "_kept", "_kept_size", "_limit", "_link",
        "answered_at", "arrived_at", "close_after", "code", "continued", "doubted", "failure", "finished", "head",
        "host", "leased_at", "meter", "origin", "partner", "peer", "received", "replayable", "replica", "request_id",
        "sent", "show_private", "started", "status", "websocket",
    )  # fmt: skip

    def __init__(self, link: Link, head: RequestHead, peer: Peer, origin: Origin, *, body_limit: int) -> None:
        self.head = head
        self.peer = peer
        self.origin = origin
        self.host = head.host
        self.request_id = headers.request_id(head.headers)
        self.websocket = False
        self.show_private = False
        self.replayable = True
        """All of the body that was passed on is still here."""
        self.doubted = False
        """It may have been what ended a replica: to the next one it goes on a new connection, whose end tells more."""
        self.failure: Reply | None = None
        self.started = False
        """A byte of the final answer was passed on, or is about to be."""
        self.finished = False
        self.continued = False
        """An interim answer told the client to send its body."""
        self.close_after = not head.keep_alive
        self.status = 0
        self.code = ""
        """Of the router's own answer."""
        self.meter: Meter | None = None
        """None: it leads to no endpoint."""
        self.replica: ReplicaKey | None = None
        """The last one it was offered to."""
        self.arrived_at = self.leased_at = self.answered_at = 0.0
        """When its head was read, when it got its place in `replica`, when the answer began; 0: not so far."""
        self.received = self.sent = 0
        """Bytes of the two bodies; of a WebSocket, of all that passed after the 101."""
        self._link = link
        self._limit = body_limit
        self._decoder: Decoder = Chunked() if head.length is None else Counted(head.length)
        self._kept: list[bytes] = []
        self._kept_size = 0
        self.partner: Partner | None = None
        self._held_back = False
        self._chunked = False
        self._held = b""

    # --- the body, towards the replica ---------------------------------------------------------------------

    @property
    def body_done(self) -> bool:
        """Every byte of the body was read."""
        return self._decoder.done

    @property
    def wants_body(self) -> bool:
        """More of it may be read from the client."""
        if self.partner is None:
            return self.finished or self._kept_size < KEPT
        return not self._held_back

    def feed(self, data: bytes) -> bytes:
        """Bytes off the socket; returns those behind the body. Not called once the body is done."""
        if self.failure is not None:
            return b""
        try:
            payload = self._decoder.feed(data)
        except FramingError as error:
            self.fail(malformed(f"The request body is malformed: {error}."))
            return b""
        if payload:
            self.received += len(payload)
            if self._limit and self.received > self._limit and not self.finished:
                self.fail(too_large(self._limit))
                return b""
            self._pass(payload)
        if self._decoder.done:
            if self.partner is not None:
                self.partner.on_body_end(headers.trailers(self._decoder.trailers))
            return self._decoder.rest
        return b""

    def _pass(self, payload: bytes) -> None:
        if self.finished:
            return  # answered already: the rest is read only to find where the next request starts
        if self.replayable:
            self._kept.append(payload)
            self._kept_size += len(payload)
        if self.partner is not None:
            self._forget_body(KEPT)
            self.partner.on_body(payload)

    def _forget_body(self, limit: int) -> None:
        """Give up the way back to another replica when more than `limit` bytes would have to be kept for it."""
        if self._kept_size > limit:
            self.replayable = False
            self._kept.clear()
            self._kept_size = 0

    def fail(self, reply: Reply) -> None:
        """The body is broken. Whoever takes it is told; a request that still waits ends its waiting."""
        if self.failure is not None or self.finished:
            return
        self.failure = reply
        self.close_after = True
        if self.partner is not None:
            self.partner.on_body_failed(reply)
        else:
            self._link.fail_waiting()

    def open_body(self, partner: Partner) -> None:
        """From now on the body goes to `partner`, from its beginning. Only while `replayable`."""
        self.partner = partner
        self._held_back = False
        for payload in self._kept:
            partner.on_body(payload)
        if self._decoder.done:
            partner.on_body_end(headers.trailers(self._decoder.trailers))
        if self._link.writing_paused:
            partner.pause_response()
        self._link.update_reading()

    def close_body(self) -> None:
        """No more of the body goes to the partner."""
        self.partner = None
        self._held_back = False

    def hold_body(self, held: bool) -> None:
        """The replica reads too slowly, or caught up."""
        self._held_back = held
        self._link.update_reading()

    # --- the answer, towards the client ---------------------------------------------------------------------

    def interim(self, response: ResponseHead) -> None:
        """Pass a 1xx on; HTTP/1.0 knows none."""
        if self.head.minor == 1 and not self.started:
            self.continued = self.continued or response.status == 100
            self._link.write(headers.interim_to_client(response))

    def begin(self, response: ResponseHead) -> None:
        """The replica's final head. It leaves with the first bytes of the body, or with `flush`."""
        self._forget_body(-1)
        self.started = True
        self.status = response.status
        self.answered_at = self._link.now()
        onward = headers.to_client(response, self.head, self.request_id, close=self._must_close())
        self.close_after = onward.close
        self._chunked = onward.chunked
        self._held = onward.head

    def _must_close(self) -> bool:
        if self.close_after or self._link.closing:
            return True
        if self._decoder.done:
            return False
        # What is left of the body would have to be read to find the next request: only worth it when it is little, and
        # when the client is sure to send it.
        waits = self.head.expects_continue and not self.continued
        length = self.head.length
        return waits or length is None or length - self.received > KEPT

    def write(self, payload: bytes) -> None:
        """A piece of the replica's body, passed on at once."""
        self.sent += len(payload)
        data = encode_chunk(payload) if self._chunked else payload
        if self._held:
            data, self._held = self._held + data, b""
        self._link.write(data)

    def flush(self) -> None:
        """The replica has nothing more to say for now."""
        if self._held:
            held, self._held = self._held, b""
            self._link.write(held)

    def end(self, fields: Headers) -> None:
        """The replica's answer is complete."""
        if self._chunked:
            self._held += encode_end(headers.trailers(fields))
        self.flush()
        self.finished = True

    def reply(self, answer: Answer) -> None:
        """The router's own answer. When another was already begun, the connection is cut."""
        self.code = answer.code
        if self.started:
            self.cut()
            return
        self.started = True
        self.status = answer.status
        self.close_after = self._must_close() or answer.close
        self._link.write(
            render(
                answer,
                request_id=self.request_id,
                is_head=self.head.method == b"HEAD",
                private=self.show_private,
                close=self.close_after,
            )
        )
        self.finished = True

    def cut(self) -> None:
        """End in the middle, so that nobody takes it for whole."""
        self._held = b""
        self._link.abort()

    def switch(self, response: ResponseHead) -> tuple[asyncio.Transport, bytes]:
        """Pass the 101 on and give up the connection: a WebSocket from here."""
        self.started = self.finished = True
        self.status = 101
        self.answered_at = self._link.now()
        self._link.write(headers.switch_to_client(response, self.request_id))
        return self._link.hand_over()


def too_large(limit: int) -> Reply:
    """413, at the head or when the limit is crossed."""
    return Reply(413, "body_too_large", f"A request body may have {limit} bytes at most.", close=True)
