"""From a lease to its replica: connections kept per address, one request streamed through, both ways at once.

Nothing is tried twice here: what may be tried again is raised as TryElsewhere, and `Router.handle` decides.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import Final, Literal

from modalnomad_sdk import contract

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.replica import Address, ReplicaKey
from modalnomad.router import headers, outcomes, websocket
from modalnomad.router.activator import Lease
from modalnomad.router.ask import ask
from modalnomad.router.auth import Caller
from modalnomad.router.channel import Channel
from modalnomad.router.channels import Channels, NoSocket
from modalnomad.router.framing import FramingError, encode_chunk, encode_end
from modalnomad.router.gate import Gate
from modalnomad.router.headers import Passage
from modalnomad.router.http1 import BadAnswer, Headers, ResponseHead
from modalnomad.router.replies import Reply
from modalnomad.router.request import Exchange
from modalnomad.router.telemetry import Counters
from modalnomad.settings import RouterSettings

_BUSY: Final = contract.HEADER_BUSY.encode()
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
"""RFC 9110, 9.2.2."""

Reason = Literal["busy", "gone", "stale"]


class TryElsewhere(Exception):
    """The replica did not take the request, and nothing of it is lost. `busy`: it said so; `gone`: no connection, or
    one on which nobody read it; `stale`: a kept connection turned out closed, the replica may well be fine."""

    def __init__(self, reason: Reason, key: ReplicaKey) -> None:
        super().__init__(f"{reason}: {key}")
        self.reason = reason
        self.avoid = frozenset({key}) if reason != "stale" else frozenset()


class _Cut(Exception):
    """`timeout` passed."""


class Forwarding:
    """One request on its way: the exchange's Partner and the channel's Sink. `done` holds the 101 of a WebSocket and
    what came behind it, or None when the answer is complete."""

    __slots__ = ("_channel", "_chunked", "_exchange", "done")

    def __init__(self, exchange: Exchange, channel: Channel) -> None:
        self._exchange = exchange
        self._channel = channel
        self._chunked = exchange.head.length is None
        self.done: asyncio.Future[tuple[ResponseHead, bytes] | None] = asyncio.get_running_loop().create_future()

    def start(self, head: bytes) -> None:
        """Head, and as much of the body as is here."""
        self._channel.request(self, self._exchange.head.method, head)
        self._exchange.open_body(self)
        self._channel.flush()

    def fail(self, error: Exception) -> None:
        """End it, unless it has ended."""
        if not self.done.done():
            self.done.set_exception(error)

    # --- Partner: the request -------------------------------------------------------------------------------

    def on_body(self, payload: bytes) -> None:
        """Pass on."""
        self._channel.send(encode_chunk(payload) if self._chunked else payload)

    def on_body_end(self, trailers: Headers) -> None:
        """Pass on."""
        if self._chunked:
            self._channel.send(encode_end(trailers))
        self._channel.flush()
        self._channel.sent = True

    def on_body_failed(self, reply: Reply) -> None:
        """Half a request is worth nothing."""
        self.fail(reply)

    def pause_response(self) -> None:
        """Let TCP push back on the replica."""
        self._channel.pause_reading()

    def resume_response(self) -> None:
        """The client caught up."""
        self._channel.resume_reading()

    # --- Sink: the answer -----------------------------------------------------------------------------------

    def on_interim(self, response: ResponseHead) -> None:
        """Pass on."""
        self._exchange.interim(response)

    def on_head(self, response: ResponseHead) -> None:
        """Pass on, but for the runner's own refusal."""
        if response.status == 503 and any(name.lower() == _BUSY for name, _ in response.headers):
            self._channel.detach()
            self.fail(_Busy())
        else:
            self._exchange.begin(response)

    def on_data(self, payload: bytes) -> None:
        """Pass on."""
        self._exchange.write(payload)

    def on_flush(self) -> None:
        """Pass on."""
        self._exchange.flush()

    def on_end(self, trailers: Headers) -> None:
        """Complete."""
        self._exchange.end(trailers)
        if not self.done.done():
            self.done.set_result(None)

    def on_switch(self, response: ResponseHead, rest: bytes) -> None:
        """A WebSocket, if one was asked for."""
        try:
            if not self._exchange.websocket:
                raise BadAnswer("101 to a request without Upgrade")
            websocket.check_response(self._exchange.head, response)
        except BadAnswer as error:
            self.fail(error)
        else:
            if not self.done.done():
                self.done.set_result((response, rest))

    def on_failed(self, error: Exception) -> None:
        """The channel broke."""
        self.fail(error)

    def pause_body(self) -> None:
        """Let TCP push back on the client."""
        self._exchange.hold_body(True)

    def resume_body(self) -> None:
        """The replica caught up."""
        self._exchange.hold_body(False)


class _Busy(Exception):
    """The runner let nothing more in."""


class Upstream:
    """Owns every connection to replicas."""

    def __init__(self, settings: RouterSettings, *, counters: Counters | None = None, clock: Clock = monotonic) -> None:
        self._channels = Channels(settings.connect_timeout, counters=counters or Counters(), clock=clock)

    # --- one request ----------------------------------------------------------------------------------------

    async def forward(self, exchange: Exchange, lease: Lease, caller: Caller, gate: Gate) -> None:
        """Returns when the answer is complete, or cut. Raises TryElsewhere, or Reply 502, 503, 504."""
        match = lease.match
        exchange.replica, exchange.leased_at = lease.key, gate.clock()
        single = match.route.endpoint.kind == "web_server"
        channel = await self._channel(lease, fresh=single or exchange.websocket or exchange.doubted)
        until = gate.clock() + match.revision.function.timeout
        passage = Passage(
            origin=exchange.origin,
            request_id=exchange.request_id,
            ticket=lease.ticket,
            endpoint=match.route.endpoint.name.encode(),
            strip=caller.strip,
            peer_trusted=exchange.peer.trusted,
            websocket=exchange.websocket,
            close=single,
        )
        run = Forwarding(exchange, channel)
        timer = asyncio.get_running_loop().call_later(match.revision.function.timeout, run.fail, _Cut())
        try:
            run.start(headers.to_replica(exchange.head, passage))
            switched = await run.done
            if switched is not None:
                timer.cancel()
                await self._tunnel(exchange, channel, gate, switched, until)
                if gate.clock() >= until:
                    lease.gone(hung=True)
        except (Reply, _Cut, _Busy, ConnectionError, BadAnswer, FramingError) as error:
            if channel.uses > 1 and not channel.answered:
                self._channels.forget(lease.address)  # what was kept as long as this one is as likely to be closed
            raise_for(error, exchange, lease, channel)
        finally:
            timer.cancel()
            exchange.close_body()
            self._channels.release(channel, keep=not single)

    async def _tunnel(
        self, exchange: Exchange, channel: Channel, gate: Gate, switched: tuple[ResponseHead, bytes], until: float
    ) -> None:
        """Until both sides have closed, or the function's time is over."""
        if channel.lost:
            raise ConnectionResetError("the replica closed the connection right after its 101")
        response, from_replica = switched
        client, from_client = exchange.switch(response)
        tunnel = websocket.Tunnel(gate, client, channel.transport, until)
        tunnel.start(from_client, from_replica)
        self._channels.disown(channel)
        for head in (exchange.head, response):
            head.headers.clear()  # of no more use, and all this would be held as long as the socket is open
            head.connection = frozenset()
        try:
            await tunnel.done
        finally:
            tunnel.abort()
            exchange.received, exchange.sent = tunnel.passed

    async def ask(
        self,
        address: Address,
        method: bytes,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        timeout: float | None,
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """One small private request. Returns status, headers (lower-case names), body. Raises ConnectionError,
        TimeoutError after `timeout` seconds (None: no limit)."""
        async with asyncio.timeout(timeout):
            return await ask(await self._channels.connect(address), method, path, headers)

    # --- connections ----------------------------------------------------------------------------------------

    async def connect(self, address: Address) -> Channel:
        """A new connection, which ends with this object. Raises ConnectionError, TimeoutError."""
        return await self._channels.connect(address)

    async def _channel(self, lease: Lease, *, fresh: bool) -> Channel:
        """A kept one, or a new one. Raises TryElsewhere when nobody listens there any more, Reply 503 when none can be
        opened to anywhere."""
        kept = None if fresh else self._channels.take(lease.address)
        if kept is not None:
            return kept
        try:
            return await self._channels.connect(lease.address)
        except NoSocket as error:
            raise outcomes.no_socket(error) from error
        except (ConnectionError, TimeoutError) as error:
            lease.gone(timed_out=isinstance(error, TimeoutError))
            raise TryElsewhere("gone", lease.key) from error

    def forget(self, address: Address) -> None:
        """Close the connections kept to an address whose replica is leaving; running requests go on."""
        self._channels.forget(address)

    @property
    def connections(self) -> tuple[int, int]:
        """Open to replicas, and of those unused. WebSockets are not among them."""
        return self._channels.counts

    async def close(self) -> None:
        """Close everything; requests still running end as if their replicas had gone."""
        await self._channels.close()


def raise_for(error: Exception, exchange: Exchange, lease: Lease, channel: Channel) -> None:
    """What a failed forwarding means to the client: another replica, the router's own answer, or, when the replica's
    was already begun, a cut connection (then it returns)."""
    if isinstance(error, _Cut):
        # It may hang altogether: asked whether it is still there before the next request gets stuck in it.
        lease.gone(hung=True)
    if exchange.started:
        exchange.cut()
        return
    if isinstance(error, Reply):
        raise error
    if isinstance(error, _Cut):
        seconds = lease.match.revision.function.timeout
        raise Reply(504, "execution_timeout", f"No answer within the function's timeout of {seconds:g} s.") from None
    if isinstance(error, _Busy):
        lease.refused()
        if exchange.replayable:
            raise TryElsewhere("busy", lease.key)
        raise Reply(
            503,
            "no_capacity",
            "The replica is full, and too much of the body had been sent to try another.",
            retry_after=1,
        ) from None
    if isinstance(error, BadAnswer | FramingError):
        raise Reply(502, "bad_answer", "The replica's answer is not valid HTTP/1.1.", private=str(error)) from error
    if channel.answered:
        raise Reply(502, "replica_gone", "The replica went away in the middle of its answer's head.") from error
    # A kept connection may have been closed by the replica just before our request got there. Sending it again is safe
    # when it may be executed twice, or when the first write already failed or was never made: then nothing arrived.
    unsent = channel.writes == 0 or (isinstance(error, BrokenPipeError) and channel.writes == 1)
    if channel.uses > 1 and exchange.replayable and (unsent or exchange.head.method in _IDEMPOTENT):
        exchange.doubted |= not unsent
        raise TryElsewhere("stale", lease.key) from error
    lease.gone()
    unread = _unread(error, exchange, channel) and exchange.head.method in _IDEMPOTENT
    if exchange.replayable and (unsent or unread):
        raise TryElsewhere("gone", lease.key) from error
    raise Reply(502, "replica_gone", "The replica went away before it answered.", private=str(error)) from error


def _unread(error: Exception, exchange: Exchange, channel: Channel) -> bool:
    """Whether the replica has not read the request to its end, so that it did not run: it was killed with it in its
    backlog, say, or is out of descriptors.

    A connection on which not all was read is reset, not closed; and of a request without a body, what was not read is
    the end of its head. (A machine that was started anew resets as well, whatever it had read: what may not run twice
    is not repeated for this.)"""
    reset = isinstance(error, ConnectionResetError) and error.errno == errno.ECONNRESET
    return (reset or channel.undelivered) and exchange.body_done and not exchange.received
