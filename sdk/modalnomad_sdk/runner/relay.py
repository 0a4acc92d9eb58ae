"""In front of a `web_server`: checks the head of each connection, then splices it to the user's port.

    router ──▶ Front ──▶ Back ──▶ 127.0.0.1:port (inside the replica's network)

One request per connection, one place per connection. Connections for managed endpoints of the same Cls are handed over
to the HTTP server with what was read.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import cast

from modalnomad_sdk.contract import CALL_PATH, HEADER_ENDPOINT, HEADER_TICKET, PREFIX

from .door_answers import BUSY, NO_ENDPOINT, Answer, Porter
from .doors import Doors
from .gate import TIMEOUT_MARGIN
from .heads import BadHead, Head, parse
from .processes import say
from .sockets import BACKLOG, HEAD_TIME, Strangers, unread

_TICKET, _ENDPOINT = HEADER_TICKET.encode(), HEADER_ENDPOINT.encode()
_BAD = Answer(400, b"Not a request of the router.\n")
_RETRIES = 20
_RETRY_EVERY = 0.05
"""Together a second: a server that replaces its workers refuses connections for a moment."""

Target = tuple[str, int]


class Relay:
    """All connections of a replica that has a `web_server`."""

    def __init__(self, targets: Mapping[str, Target], doors: Doors, porter: Porter, timeout: float) -> None:
        self.targets = targets
        self.doors = doors
        self.porter = porter
        self.timeout = timeout + TIMEOUT_MARGIN
        self.managed: Callable[[], asyncio.Protocol] | None = None
        """Makes the protocol that takes over connections for managed endpoints."""
        self.managed_names: frozenset[str] = frozenset()
        self.failed = False
        """The user's server stopped accepting for good."""
        self.fronts: set[Front] = set()
        self.strangers = Strangers()
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    def protocol(self) -> asyncio.Protocol:
        """A protocol for one connection."""
        return Front(self)

    async def listen(self, listener: socket.socket) -> None:
        """Accept from here on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.protocol, sock=listener, backlog=BACKLOG)

    def stop_listening(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Cut what is left. Who has said nothing so far is refused first, as in `Server.close`."""
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        for front in list(self.fronts):
            front.end()
        deadline = asyncio.get_running_loop().time() + 1
        while self.fronts and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - bounded, once
            await asyncio.sleep(0.005)

    def target_of(self, name: str) -> Target | None:
        """Where an endpoint's server listens. No name: the only one."""
        if not name and len(self.targets) == 1 and not self.managed_names:
            return next(iter(self.targets.values()))
        return self.targets.get(name)

    def gave_up(self, target: Target) -> None:
        """Nobody accepts there any more: this replica is of no use."""
        say(f"the server on port {target[1]} stopped accepting connections: this replica ends")
        self.failed = True
        self.doors.shut()


class _Side(asyncio.Protocol):
    """One end of a splice. Reading here pauses while the other end cannot write."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Back(_Side):
    """The connection to the user's server."""

    def eof_received(self) -> bool:
        """It has said all: pass on the rest, then end."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        front = self.other.transport if self.other is not None else None
        if front is None or front.is_closing():
            return
        if exc is not None and self.transport is not None:
            # It may have answered and closed with a body unread, and what failed was to pass on more of the body.
            front.write(unread(self.transport))
        front.close()


class Front(_Side):
    """A connection of the router."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay
        self.waiting: bytearray | None = bytearray()
        """What was read of the head; None once it was decided on."""
        self.inside = False
        self.answered = False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.relay.fronts.add(self)
        self.timer = asyncio.get_running_loop().call_later(HEAD_TIME, self._end_silent)
        self.relay.strangers.came(cast(asyncio.Transport, transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self.other is not None:
            self.other.abort()

    def _forget(self) -> None:
        self.relay.fronts.discard(self)
        self._know()
        if self.timer is not None:
            self.timer.cancel()
        if self.inside:
            self.inside = False
            self.relay.doors.leave()

    def eof_received(self) -> bool:
        """The request is over; its answer still comes."""
        if self.other is None or self.other.transport is None:
            return False
        self.other.transport.write_eof()
        return True

    def data_received(self, data: bytes) -> None:
        if self.waiting is None:
            super().data_received(data)
            return
        self.waiting += data
        try:
            parsed = parse(self.waiting)
        except BadHead:
            self._answer(_BAD)
            return
        if parsed is not None:
            whole, self.waiting = bytes(self.waiting), None
            self._decide(parsed[0], parsed[1], whole)

    def end(self) -> None:
        """Whatever it is at."""
        if self.waiting is not None:
            self._answer(BUSY)
        elif self.answered and self.transport is not None:
            self.transport.close()
        else:
            self.abort()

    def _end_silent(self) -> None:
        """No head in time: whoever this is, it is no router."""
        if self.waiting is not None:
            self.abort()

    def _know(self) -> None:
        if self.transport is not None:
            self.relay.strangers.known(self.transport)

    def _decide(self, head: Head, rest: bytes, whole: bytes) -> None:
        relay = self.relay
        self._know()
        if self.timer is not None:
            self.timer.cancel()
        if not relay.porter.admits(head.get(_TICKET)):
            return self._answer(relay.porter.stranger(head.get(_TICKET), head.method, head.path))
        relay.doors.contact()
        if head.path == CALL_PATH and relay.managed is not None:
            return self._hand_over(relay.managed(), whole)
        if head.path.startswith(PREFIX):
            return self._answer(relay.porter.private(head.method, head.path, head.query))
        name = head.get(_ENDPOINT).decode("latin-1")
        if relay.managed is not None and name in relay.managed_names:
            return self._hand_over(relay.managed(), whole)
        target = relay.target_of(name)
        if target is None:
            return self._answer(NO_ENDPOINT)
        if not relay.doors.enter():
            return self._answer(BUSY)
        self.inside = True
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(relay.timeout, self.abort)
        assert self.transport is not None
        self.transport.pause_reading()
        task = loop.create_task(self._connect(target, head.for_user() + rest))
        relay.tasks.add(task)
        task.add_done_callback(relay.tasks.discard)
        return None

    async def _connect(self, target: Target, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_RETRIES):
            try:
                transport, back = await loop.create_connection(Back, *target)
                break
            except OSError:
                await asyncio.sleep(_RETRY_EVERY)
        else:
            self.relay.gave_up(target)
            return self._answer(BUSY)
        if self.transport is None or self.transport.is_closing():
            transport.abort()
            return None
        back.other, self.other = self, back
        transport.write(first)
        self.transport.resume_reading()
        return None

    def _hand_over(self, protocol: asyncio.Protocol, whole: bytes) -> None:
        assert self.transport is not None
        self._forget()
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(whole)

    def _answer(self, answer: Answer) -> None:
        self.waiting, self.answered = None, True
        if self.transport is None:
            return
        self.transport.write(answer.last())
        self.transport.close()
