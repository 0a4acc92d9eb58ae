"""One client connection: heads off the socket, one request at a time, answers back in order.

HEAD ─head complete─▶ BUSY ─answered─▶ HEAD            (keep-alive, body read to its end)
  │                     │  └──────────▶ DISCARD ─▶ HEAD (a little of the body is still to be read)
  └─bad head──▶ LINGER ◀┴─must close                    (write side shut, the rest thrown away)
                   └─peer closed, or time─▶ closed
"""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Final, cast

from modalnomad.router import http1
from modalnomad.router.crowd import FULL
from modalnomad.router.gate import Gate
from modalnomad.router.headers import Peer, origin, request_id
from modalnomad.router.http1 import HEAD_END, malformed
from modalnomad.router.presence import presence
from modalnomad.router.problem import render
from modalnomad.router.replies import Answer, Reply
from modalnomad.router.request import KEPT, Exchange

HEAD: Final = 0
BUSY: Final = 1
DISCARD: Final = 2
LINGER: Final = 3
TUNNEL: Final = 4
CLOSED: Final = 5

LINGER_TIME: Final = 2.0
"""Seconds an answered client has to stop sending; closing at once would reset the connection and may destroy the
answer."""
DISCARD_TIME: Final = 5.0
PROBE_AFTER: Final = (1.0, 10.0, 60.0, 300.0)
"""Seconds before each interim answer to a waiting client whose body is not read, or that closed its side. Few: some
clients give up after five."""
SILENCE: Final = 5.0
"""Seconds without a byte of answer after which a client that closed its side in mid-answer is taken for gone."""


class Connection(asyncio.Protocol):
    """See the module. `bound_host`: every request here is for that host, whatever its Host says (a `direct_url`)."""

    __slots__ = (
        "_bound_host", "_buffer", "_deadline", "_eof", "_exchange", "_flushed", "_gate", "_peer",
        "_probe_at", "_probes", "_reading", "_scanned", "_state", "_task", "_transport", "_wrote_at", "writing_paused",
    )  # fmt: skip

    def __init__(self, gate: Gate, bound_host: str | None = None) -> None:
        self._gate = gate
        self._bound_host = bound_host
        self._buffer = b""
        self._scanned = 0
        self._state = HEAD
        self._deadline = math.inf
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._transport = cast("asyncio.Transport", None)
        self._peer = cast("Peer", None)
        self._reading = True
        self._eof = False
        self._probes = 0
        self._probe_at = 0.0
        self._flushed = False
        self._wrote_at = 0.0
        self.writing_paused = False

    # --- what the event loop says ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted."""
        self._transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("peername")
        address, port = (name[0], name[1]) if isinstance(name, tuple) else ("127.0.0.1", 0)
        scheme = b"http" if transport.get_extra_info("sslcontext") is None else b"https"
        self._peer = Peer(address, port, scheme, address in self._gate.trusted)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._deadline = self._gate.clock() + self._gate.settings.idle_timeout
        self._gate.counters.accepted += 1
        self._gate.enter(self)
        if self._gate.closing:
            self._transport.close()
        elif sock is not None and self._gate.crowd.turns_away(sock.fileno()):
            self._answer(FULL)
            self._close()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, or of a request sent ahead of its turn."""
        if self._state == HEAD:
            if not self._buffer:
                self._deadline = self._gate.clock() + self._gate.settings.head_timeout
            self._buffer += data
            self._go_on()
        elif self._exchange is not None and self._state in {BUSY, DISCARD}:
            if self._exchange.body_done:
                self._buffer += data
            else:
                self._buffer += self._exchange.feed(data)
            if self._state == DISCARD and self._exchange.failure is not None:
                self._linger()
            elif self._state == DISCARD and self._exchange.body_done:
                self._next()
            else:
                self.update_reading()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read: RFC 9112 does not end a request for that."""
        self._eof = True
        exchange = self._exchange
        if self._state != BUSY or exchange is None or self._peer.scheme == b"https":
            return False
        if not exchange.body_done:
            exchange.fail(malformed("The request body ended before its announced length."))
        elif exchange.head.minor == 0 and not exchange.started:
            self._transport.abort()
        else:
            self._wrote_at = self._gate.clock()
            self._probe()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Gone: whatever still runs for it ends, and frees what it holds."""
        self._state = CLOSED
        self._gate.leave(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.writing_paused = True
        if self._exchange is not None and self._exchange.partner is not None:
            self._exchange.partner.pause_response()

    def resume_writing(self) -> None:
        """It caught up."""
        self.writing_paused = False
        if self._exchange is not None and self._exchange.partner is not None:
            self._exchange.partner.resume_response()
        elif self._state == HEAD:
            self._rest()

    # --- heads ----------------------------------------------------------------------------------------------

    def _take_head(self) -> None:
        """Start the next request once its head is complete; refuse what can no longer become one."""
        empty = 0
        while self._buffer.startswith(b"\r\n", empty):
            empty += 2
        if empty:
            self._buffer = self._buffer[empty:]  # RFC 9112, 2.2: empty lines before a request are forgiven
            self._scanned = 0
        limit = self._gate.settings.head_limit
        end = self._buffer.find(HEAD_END, max(0, self._scanned - 3))
        if end < 0:
            # From the last byte seen on, when that is a CR that waited for its LF.
            seen = self._scanned - 1 if self._buffer.endswith(b"\r", 0, self._scanned) else self._scanned
            problem = http1.hopeless(self._buffer[seen:])
            self._scanned = len(self._buffer)
            if problem is not None:
                self._refuse(malformed(problem))
            elif len(self._buffer) > limit:
                self._refuse(self._head_too_large(limit))
            return
        if end + len(HEAD_END) > limit:
            self._refuse(self._head_too_large(limit))
            return
        end += len(HEAD_END)
        head, rest = self._buffer[:end], self._buffer[end:]
        try:
            parsed = http1.parse_request(head)
        except Reply as reply:
            self._refuse(reply)
            return
        self._start(parsed, rest)

    def _head_too_large(self, limit: int) -> Reply:
        if b"\r\n" in self._buffer[:limit]:
            return Reply(431, "head_too_large", f"A request head may have {limit} bytes at most.", close=True)
        return Reply(414, "target_too_long", f"A request line may have {limit} bytes at most.", close=True)

    def _refuse(self, reply: Reply) -> None:
        """Answer what never became a request, and close."""
        self._answer(reply.answer)
        self._linger()

    def _answer(self, answer: Answer) -> None:
        identity = request_id([])
        self._gate.refused(self._peer, identity, answer)
        self.write(render(answer, request_id=identity, is_head=False, private=False, close=True))

    def _start(self, head: http1.RequestHead, rest: bytes) -> None:
        gate = self._gate
        self._state = BUSY
        self._deadline = math.inf
        self._scanned = 0
        self._probes = 0
        now = gate.clock()
        self._probe_at = now + PROBE_AFTER[0]
        exchange = Exchange(
            self, head, self._peer, origin(head, self._peer, gate.trusted), body_limit=gate.settings.body_limit
        )
        exchange.arrived_at = now
        if self._bound_host is not None:
            exchange.host = self._bound_host
        self._exchange = exchange
        self._buffer = rest if exchange.body_done else exchange.feed(rest) if rest else b""
        if gate.draining:
            answer = Reply(503, "draining", "The router is shutting down.", retry_after=1, close=True).answer
            exchange.reply(answer)
            self._finished(exchange)
            return
        if exchange.failure is not None:
            exchange.reply(exchange.failure.answer)
            self._finished(exchange)
            return
        gate.counters.running += 1
        self._task = gate.tasks.spawn(gate.handle(exchange), "request")
        # Not a `finally` in the task: one that is cancelled before its first step never gets there.
        self._task.add_done_callback(self._served)
        self.update_reading()

    # --- one request ----------------------------------------------------------------------------------------

    def _served(self, task: asyncio.Task[None]) -> None:
        self._gate.counters.running -= 1
        self._task = None
        exchange = self._exchange
        if exchange is None:
            return
        if task.cancelled() and exchange.failure is not None and self._state == BUSY:
            exchange.reply(exchange.failure.answer)  # its body turned out broken while it waited
        self._finished(exchange)

    def _finished(self, exchange: Exchange) -> None:
        self._gate.finished(exchange)
        if self._state != BUSY:
            return
        if not exchange.finished:
            self.abort()
        elif exchange.close_after:
            self._linger()
        elif exchange.body_done:
            self._next()
        else:
            self._state = DISCARD
            self._deadline = self._gate.clock() + DISCARD_TIME
            self.update_reading()

    def _next(self) -> None:
        """The connection is free for another request, which may be here already."""
        self._exchange = None
        self._state = HEAD
        if self._gate.closing and not self._buffer:
            self._close()
        else:
            self._rest()

    def _rest(self) -> None:
        settings = self._gate.settings
        awaited = self._buffer and not self.writing_paused
        self._deadline = self._gate.clock() + (settings.head_timeout if awaited else settings.idle_timeout)
        self._go_on()

    def _go_on(self) -> None:
        """Take the next head, once the client has read enough of what it was told before."""
        if self._buffer and not self.writing_paused:
            self._take_head()
        if self._state == HEAD:
            if self._eof and not (self._buffer and self.writing_paused):
                self._close()  # nothing more can come
            else:
                self.update_reading()

    def _close(self) -> None:
        """Close, once the client has taken what was written; a silent one has as long as an idle one."""
        self._state = LINGER
        self._deadline = self._gate.clock() + self._gate.settings.idle_timeout
        self._transport.close()

    def _linger(self) -> None:
        """Say that nothing more comes, and wait for the client to close."""
        self._state = LINGER
        self._exchange = None
        self._buffer = b""
        if self._transport.is_closing():
            return
        if self._eof or not self._transport.can_write_eof():
            self._close()
            return
        pending = self._transport.get_write_buffer_size()
        self._deadline = self._gate.clock() + (self._gate.settings.idle_timeout if pending else LINGER_TIME)
        self._transport.write_eof()
        self.update_reading()

    # --- Link: what an exchange asks ------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """No further request is taken here."""
        return self._gate.draining or self._eof

    def now(self) -> float:
        """The router's clock."""
        return self._gate.clock()

    def write(self, data: bytes) -> None:
        """To the client."""
        if self._eof:
            self._wrote_at = self._gate.clock()
        if not self._transport.is_closing():  # uvloop raises
            self._transport.write(data)

    def update_reading(self) -> None:
        """Read on, unless nobody has room for more."""
        wanted = len(self._buffer) < KEPT and not (self._state == HEAD and self.writing_paused)
        if self._exchange is not None and not self._exchange.body_done:
            wanted = self._exchange.wants_body
        if wanted != self._reading and not self._eof and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def fail_waiting(self) -> None:
        """The body of a request that waits is broken."""
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """Cut, also when it is closing already: that waits for a client that may never read."""
        self._transport.abort()

    def hand_over(self) -> tuple[asyncio.Transport, bytes]:
        """Give the transport to a tunnel."""
        self._state = TUNNEL
        self._task = None
        self._gate.leave(self)
        buffer, self._buffer = self._buffer, b""
        return self._transport, buffer

    # --- Guest: what the gate asks --------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A request is being answered, or the end of an answer is still on its way."""
        return self._state == BUSY or (self._state != CLOSED and self._transport.get_write_buffer_size() > 0)

    def drain(self) -> None:
        """Nothing new after what runs."""
        if self._state == HEAD and not self._buffer:
            self._close()

    def tick(self, now: float) -> None:
        """Time-outs of heads, idle connections and closings; and is the client of a waiting request still there?"""
        if self._state == BUSY:
            if self._eof or not self._reading:
                self._check_presence(now)
        elif self._state == LINGER and not self._flushed and self._transport.get_write_buffer_size() == 0:
            self._flushed = True
            self._deadline = min(self._deadline, now + LINGER_TIME)
        if now < self._deadline:
            return
        if self._state == HEAD and self._buffer and not self.writing_paused:
            seconds = self._gate.settings.head_timeout
            self._refuse(Reply(408, "head_timeout", f"No complete head within {seconds:g} s.", close=True))
        elif self._state == HEAD:
            self._close()
        else:
            self.abort()

    def _probe(self) -> None:
        """Only a write shows whether a peer that is silent still reads: a closed one answers it with a reset. A 100 is
        what every client skips (RFC 9110, 15.2.1); some take any other 1xx for the answer."""
        exchange = self._exchange
        if exchange is None or exchange.started or exchange.head.minor == 0 or self._probes == len(PROBE_AFTER):
            return
        self._probes += 1
        if self._probes < len(PROBE_AFTER):
            self._probe_at = self._gate.clock() + PROBE_AFTER[self._probes]
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        asyncio.get_running_loop().call_later(0.05, self._check_probe)

    def _check_probe(self) -> None:
        if self._state == BUSY and presence(self._transport) == "gone":
            self._transport.abort()

    def _check_presence(self, now: float) -> None:
        found = presence(self._transport)
        if found == "gone":
            self._transport.abort()
        elif self._eof and self._probes == 0 and now - self._wrote_at > SILENCE:
            self._transport.abort()  # it closed its side in mid-answer, and nothing was written since that could tell
        elif now >= self._probe_at or (found == "half_closed" and self._probes == 0):
            self._probe()
