"""One connection to a replica: a request out, its answer in, and then perhaps the next."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import termios
from collections.abc import Callable, Iterator
from typing import Final, Protocol, cast

from modalnomad.model.replica import Address
from modalnomad.router.framing import Chunked, Counted, Decoder, FramingError, UntilClose
from modalnomad.router.http1 import HEAD_END, BadAnswer, Headers, ResponseHead, parse_response

_HEAD_LIMIT: Final = 256 * 1024
_INTERIM_LIMIT: Final = 64
_WHOLE: Final = 16 * 1024
"""Bytes that the system takes all of or none, with nothing else on the way; of more it may take a part."""


class Sink(Protocol):
    """Who an answer goes to. `on_end`, `on_switch` and `on_failed` are the last it hears, whichever comes first."""

    def on_interim(self, response: ResponseHead) -> None:
        """1xx, but 101."""

    def on_head(self, response: ResponseHead) -> None:
        """The final head."""

    def on_data(self, payload: bytes) -> None:
        """Never empty."""

    def on_flush(self) -> None:
        """All that arrived together was told."""

    def on_end(self, trailers: Headers) -> None:
        """The answer is complete."""

    def on_switch(self, response: ResponseHead, rest: bytes) -> None:
        """101; reading is paused, `rest` is what came behind the head."""

    def on_failed(self, error: Exception) -> None:
        """The connection ended too early (ConnectionError), or what came is not HTTP (BadAnswer, FramingError)."""

    def pause_body(self) -> None:
        """The replica reads too slowly."""

    def resume_body(self) -> None:
        """It caught up."""


class Channel(asyncio.Protocol):
    """See the module. `on_made` and `on_lost` are called once each."""

    __slots__ = (
        "_buffer", "_decoder", "_held", "_interims", "_keep_alive", "_method", "_on_lost", "_on_made", "_sink",
        "address", "answered", "idle_since", "lost", "sent", "transport", "undelivered", "uses", "writes",
    )  # fmt: skip

    def __init__(
        self, address: Address, on_made: Callable[[Channel], None], on_lost: Callable[[Channel], None]
    ) -> None:
        self.address = address
        self.transport = cast("asyncio.Transport", None)
        self.uses = 0
        self.writes = 0
        """Of this request, so far. One that the system may take a part of counts as several."""
        self.sent = False
        """The request was written to its end."""
        self.answered = False
        """At least one byte of this request's answer came."""
        self.lost = False
        self.undelivered = False
        """The replica closed before all that was written had reached it."""
        self.idle_since = 0.0
        self._on_made = on_made
        self._on_lost = on_lost
        self._sink: Sink | None = None
        self._method = b""
        self._held = b""
        self._buffer = b""
        self._decoder: Decoder | None = None
        self._keep_alive = False
        self._interims = 0

    # --- the request ----------------------------------------------------------------------------------------

    def request(self, sink: Sink, method: bytes, head: bytes) -> None:
        """Begin. The head leaves with the first bytes of the body, or with `flush`."""
        self._sink = sink
        self._method = method
        self._held = head
        self._buffer = b""
        self._decoder = None
        self._keep_alive = False
        self._interims = 0
        self.sent = False
        self.answered = False
        self.writes = 0
        self.uses += 1

    def send(self, data: bytes) -> None:
        """Body, as framed on the wire."""
        if self._held:
            data, self._held = self._held + data, b""
        self._write(data)

    def flush(self) -> None:
        """Nothing more for now."""
        if self._held:
            held, self._held = self._held, b""
            self._write(held)

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():  # that it closes is told by `connection_lost`; uvloop raises here
            self.writes += 1 + len(data) // _WHOLE
            self.transport.write(data)

    def pause_reading(self) -> None:
        """Let TCP push back on the replica."""
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The reader caught up."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def reusable(self) -> bool:
        """The last request and its answer are complete and the replica keeps the connection."""
        return self._keep_alive and self.sent and self._sink is None and not self.transport.is_closing()

    def detach(self) -> None:
        """Whoever took the answer is no longer interested."""
        self._sink = None

    def close(self) -> None:
        """Close without another word to anybody."""
        self._sink = None
        self._keep_alive = False
        self.transport.abort()  # also when it is closing already: that waits for a replica that may never read

    # --- the answer -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """A piece of the answer."""
        sink = self._sink
        if sink is None:
            self.close()  # nobody asked
            return
        self.answered = True
        try:
            if self._decoder is None:
                self._buffer += data
                self._take_heads(sink)
            else:
                self._take_body(sink, self._decoder, data)
        except (BadAnswer, FramingError) as error:
            self._fail(error)
        else:
            if self._sink is not None:
                sink.on_flush()

    def _take_heads(self, sink: Sink) -> None:
        while True:
            end = self._buffer.find(HEAD_END)
            if end > _HEAD_LIMIT or (end < 0 and len(self._buffer) > _HEAD_LIMIT):
                raise BadAnswer(f"the head of the answer has more than {_HEAD_LIMIT} bytes")
            if end < 0:
                if not b"HTTP/1.".startswith(self._buffer[:7]):
                    raise BadAnswer(f"not a status line: {self._buffer[:64]!r}")
                return
            end += len(HEAD_END)
            response = parse_response(self._buffer[:end], self._method)
            self._buffer = self._buffer[end:]
            if response.status == 101:
                self._switch(sink, response)
                return
            if response.status >= 200:
                break
            self._interims += 1
            if self._interims > _INTERIM_LIMIT:
                raise BadAnswer("too many interim answers")
            sink.on_interim(response)
        self._begin(sink, response)

    def _begin(self, sink: Sink, response: ResponseHead) -> None:
        rest, self._buffer = self._buffer, b""
        self._keep_alive = response.keep_alive
        if response.framing == "chunked":
            self._decoder = Chunked()
        elif response.framing == "close":
            self._decoder = UntilClose()
        else:
            self._decoder = Counted(response.length if response.framing == "length" else 0)
        sink.on_head(response)
        if self._sink is None:
            return
        if self._decoder.done:
            self._complete(sink, self._decoder, rest)
        elif rest:
            self._take_body(sink, self._decoder, rest)

    def _take_body(self, sink: Sink, decoder: Decoder, data: bytes) -> None:
        payload = decoder.feed(data)
        if payload:
            sink.on_data(payload)
        if decoder.done:
            self._complete(sink, decoder, decoder.rest)

    def _complete(self, sink: Sink, decoder: Decoder, rest: bytes) -> None:
        self._keep_alive = self._keep_alive and not rest  # bytes behind an answer belong to no request
        self._sink = None
        self._decoder = None
        sink.on_end(decoder.trailers)

    def _switch(self, sink: Sink, response: ResponseHead) -> None:
        self._sink = None
        self.pause_reading()
        rest, self._buffer = self._buffer, b""
        sink.on_switch(response, rest)

    def _fail(self, error: Exception) -> None:
        sink = self._sink
        self.close()
        if sink is not None:
            sink.on_failed(error)

    def eof_received(self) -> bool:
        """The replica closed: the end of an answer that has no other, else its failure."""
        if self._sink is not None and isinstance(self._decoder, UntilClose):
            sink, decoder = self._sink, self._decoder
            decoder.finish()
            self._complete(sink, decoder, b"")
        elif self._sink is not None:
            self.undelivered = _unacknowledged(self.transport)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Closed."""
        self.lost = True
        if self._sink is not None and isinstance(error, (BrokenPipeError, ConnectionResetError)):
            self._salvage()
        sink, self._sink = self._sink, None
        self._keep_alive = False
        self._on_lost(self)
        if sink is not None:
            if not isinstance(error, ConnectionError):
                error = ConnectionResetError("the replica closed the connection before its answer was complete")
            sink.on_failed(error)

    def _salvage(self) -> None:
        """A replica that answers early and closes makes our next write fail, while its answer is still unread in the
        socket: an answer is worth more than the error."""
        for data in unread(self.transport):
            if self._sink is None:
                break
            if data:
                self.data_received(data)
            else:
                self.eof_received()

    def pause_writing(self) -> None:
        """The replica reads too slowly."""
        if self._sink is not None:
            self._sink.pause_body()

    def resume_writing(self) -> None:
        """It caught up."""
        if self._sink is not None:
            self._sink.resume_body()


def unread(transport: asyncio.Transport) -> Iterator[bytes]:
    """What came before the connection was reset, and nobody has read; an empty last piece: its end had come too. For
    `connection_lost`, after a write failed."""
    sock = transport.get_extra_info("socket")
    fd = sock.fileno() if sock is not None else -1
    with contextlib.suppress(OSError):
        while fd >= 0:
            data = os.read(fd, 65536)
            yield data
            if not data:
                break


def _unacknowledged(transport: asyncio.Transport) -> bool:
    """Whether something that was written has not reached the other side's kernel: the FIN acknowledges what had (Linux;
    SIOCOUTQ in tcp(7)). False: nobody knows."""
    sock = transport.get_extra_info("socket")
    try:
        return sock is not None and fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)) != bytes(4)
    except OSError:
        return False
