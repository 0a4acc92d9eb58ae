"""The ASGI application in front of the user's: ticket, places, client address, time limit, request id."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modalnomad_sdk import state
from modalnomad_sdk.contract import (
    CALL_PATH,
    HEADER_CLIENT,
    HEADER_ENDPOINT,
    HEADER_METHOD,
    HEADER_REQUEST_ID,
    HEADER_TELL,
    HEADER_TICKET,
    PREFIX,
    PRIVATE_HEADER_PREFIX,
)

from . import logs
from .door_answers import BUSY, NO_ENDPOINT, Answer, Porter
from .doors import Doors
from .lifespan import App, Lifespan, Message, Receive, Scope, Send
from .processes import say

if TYPE_CHECKING:
    from .calls import Calls

_TICKET, _CLIENT, _ENDPOINT = HEADER_TICKET.encode(), HEADER_CLIENT.encode(), HEADER_ENDPOINT.encode()
_METHOD, _TELL = HEADER_METHOD.encode(), HEADER_TELL.encode()
_REQUEST_ID, _PRIVATE = HEADER_REQUEST_ID.encode(), PRIVATE_HEADER_PREFIX.encode()
_LONG_BODY = (b"content-length", b"transfer-encoding")

TIMEOUT_MARGIN = 1.0
"""Seconds the runner waits past `timeout`: the router's clock started earlier and its answer should win."""
YIELD_TIME = 5.0
"""Seconds a request that ran too long may take to end once it is cancelled; then the replica ends."""


@dataclass(frozen=True)
class Mounted:
    """One endpoint that the runner serves itself."""

    app: App
    lifespan: Lifespan


@dataclass
class _Head:
    """What the gate takes out of the request's headers."""

    ticket: bytes = b""
    client: tuple[str, int] | None = None
    endpoint: str = ""
    method: str = ""
    tell: bool = False
    request_id: str | None = None
    scheme: str | None = None
    has_body: bool = False


class Gate:
    """Everything comes through here; nothing without the ticket, and never more than `max_inputs` at once."""

    def __init__(
        self,
        endpoints: Mapping[str, Mounted],
        doors: Doors,
        porter: Porter,
        timeout: float,
        calls: Calls | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.calls = calls
        self.doors = doors
        self.porter = porter
        self.timeout = timeout + TIMEOUT_MARGIN
        self._only = next(iter(endpoints.values())) if len(endpoints) == 1 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = _take(scope)
        if not self.porter.admits(head.ticket):
            # Never kept open: only who has the ticket may take our time.
            answer = self.porter.stranger(head.ticket, scope.get("method", ""), scope["path"])
            return await _reply(scope, send, answer, head, close=True)
        self.doors.contact()
        path: str = scope["path"]
        if path == CALL_PATH and self.calls is not None and scope.get("method") == "POST":
            return await self._call(self.calls, head, scope, receive, send)
        if path.startswith(PREFIX):
            return await _reply(
                scope, send, self.porter.private(scope.get("method", ""), path, scope["query_string"]), head
            )
        mounted = self.endpoints.get(head.endpoint) or (self._only if not head.endpoint else None)
        if mounted is None:
            return await _reply(scope, send, NO_ENDPOINT, head)
        if not self.doors.enter():
            return await _reply(scope, send, BUSY, head)
        try:
            return await self._serve(mounted, head, scope, receive, send)
        finally:
            self.doors.leave()

    async def _call(self, calls: Calls, head: _Head, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.doors.enter():
            return await _reply(scope, send, BUSY, head)
        state.current_input.set(head.request_id)
        try:
            return await calls.answer(head.method, head.tell, receive, send)
        finally:
            if head.request_id is not None:
                logs.finish_request(head.request_id)
            self.doors.leave()

    async def _serve(self, mounted: Mounted, head: _Head, scope: Scope, receive: Receive, send: Send) -> None:
        scope["client"] = head.client
        scope["state"] = mounted.lifespan.state.copy()
        if head.scheme is not None:
            secure = head.scheme == "https"
            plain = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = plain + "s" if secure else plain
        state.current_input.set(head.request_id)
        task = asyncio.current_task()
        assert task is not None
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        loop = asyncio.get_running_loop()
        expired = stuck = False

        def strand() -> None:
            nonlocal stuck
            stuck = True
            say(f"a request was cancelled and goes on after {YIELD_TIME:g} s: this replica takes no more")
            self.doors.strand()

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()
            timers.append(loop.call_later(YIELD_TIME, strand))

        timers = [loop.call_later(self.timeout, expire)]
        try:
            await mounted.app(scope, receive, watched_send)
        except asyncio.CancelledError:
            if not expired:
                raise
            sys.stderr.write(f"modalnomad: a request ran longer than timeout={self.timeout - TIMEOUT_MARGIN:g} s\n")
            await _give_up(scope, send, started)
        finally:
            for timer in timers:
                timer.cancel()
            if stuck:
                self.doors.unstrand()
            if head.request_id is not None:
                logs.finish_request(head.request_id)


def _take(scope: Scope) -> _Head:
    """Read our headers, and leave only the user's in the scope."""
    head = _Head()
    kept: list[tuple[bytes, bytes]] = []
    for pair in scope["headers"]:
        name, value = pair
        if name.startswith(_PRIVATE):
            if name == _TICKET:
                head.ticket = value
            elif name == _CLIENT:
                head.client = _client(value)
            elif name == _ENDPOINT:
                head.endpoint = value.decode("latin-1")
            elif name == _METHOD:
                head.method = value.decode("latin-1")
            elif name == _TELL:
                head.tell = value == b"1"
            continue
        if name == _REQUEST_ID:
            head.request_id = value.decode("latin-1")
        elif name == b"x-forwarded-proto":
            head.scheme = value.decode("latin-1")
        elif name in _LONG_BODY and value != b"0":
            head.has_body = True
        kept.append(pair)
    scope["headers"] = kept
    return head


def _client(value: bytes) -> tuple[str, int] | None:
    host, _, port = value.decode("latin-1").partition(" ")
    return (host, int(port)) if port.isdigit() else None


async def _reply(scope: Scope, send: Send, answer: Answer, head: _Head, close: bool = False) -> None:
    """The runner's own answer, before anything of the body was read."""
    headers = answer.all_headers(close=close or head.has_body or scope["type"] == "websocket")
    kind = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1013})
            return
        kind = "websocket.http"
    await send({"type": f"{kind}.response.start", "status": answer.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": answer.body, "more_body": False})


async def _give_up(scope: Scope, send: Send, started: bool) -> None:
    """End a request that ran too long: an answer if none had begun, else a cut that no client takes for a clean end."""
    if scope["type"] == "websocket":
        message: dict[str, Any] = {"type": "websocket.close", "code": 1011, "reason": "execution timeout"}
        await send(message)
        return
    if started:
        raise RuntimeError("the response was cut off: it ran longer than its timeout")
    body = b"The request ran longer than its timeout.\n"
    await send({"type": "http.response.start", "status": 504, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
