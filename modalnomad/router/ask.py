"""Private requests to a replica: is it ready, will it drain, a greeting, a call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from modalnomad.router.channel import Channel
from modalnomad.router.framing import FramingError
from modalnomad.router.http1 import BadAnswer, Headers, ResponseHead

_ASK_LIMIT: Final = 1024 * 1024


async def ask(
    channel: Channel,
    method: bytes,
    path: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    body: bytes = b"",
    limit: int = _ASK_LIMIT,
) -> tuple[int, Headers, bytes]:
    """Status, headers (lower-case names), body. Raises ConnectionError, also when the answer's body has more than
    `limit` bytes. The channel is closed afterwards."""
    lines = [b"%b %b HTTP/1.1\r\nhost: localhost\r\nconnection: close" % (method, path)]
    lines.extend(b"%b: %b" % field for field in headers)
    if method not in {b"GET", b"HEAD"}:
        lines.append(b"content-length: %d" % len(body))
    answer = _Collector(channel, limit)
    try:
        channel.request(answer, method, b"\r\n".join(lines) + b"\r\n\r\n")
        if body:
            channel.send(body)
        channel.flush()
        return await answer.done
    except (BadAnswer, FramingError) as error:
        raise ConnectionAbortedError(f"whoever listens there does not speak HTTP/1.1: {error}") from error
    finally:
        channel.close()


class _Collector:
    """A Sink that keeps a small answer whole."""

    def __init__(self, channel: Channel, limit: int) -> None:
        self._channel = channel
        self._limit = limit
        self._response: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self.done: asyncio.Future[tuple[int, Headers, bytes]] = asyncio.get_running_loop().create_future()

    def on_interim(self, response: ResponseHead) -> None:
        """Of no interest."""

    def on_head(self, response: ResponseHead) -> None:
        """Kept."""
        self._response = response

    def on_data(self, payload: bytes) -> None:
        """Kept, within reason."""
        self._size += len(payload)
        if self._size > self._limit:
            self._channel.detach()
            self.on_failed(BadAnswer(f"more than {self._limit} bytes"))
        self._pieces.append(payload)

    def on_flush(self) -> None:
        """Nothing to pass on."""

    def on_end(self, trailers: Headers) -> None:
        """Complete."""
        assert self._response is not None
        if not self.done.done():
            fields = [(name.lower(), value) for name, value in self._response.headers]
            self.done.set_result((self._response.status, fields, b"".join(self._pieces)))

    def on_switch(self, response: ResponseHead, rest: bytes) -> None:
        """Nobody asked for that."""
        self.on_failed(BadAnswer("101 to a request without Upgrade"))

    def on_failed(self, error: Exception) -> None:
        """Broken."""
        if not self.done.done():
            self.done.set_exception(error)

    def pause_body(self) -> None:
        """There is none."""

    def resume_body(self) -> None:
        """There is none."""
