"""The event stream: a connection that is written to as long as it lasts, without length or chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from tests.support.fakes.nomad.state import Line, Refused, Shape, State
from tests.support.fakes.nomad.web import Ask, Routes

HEARTBEAT: Final = 30.0
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache\r\n"
    b"Content-Type: application/json\r\nVary: Accept-Encoding\r\n\r\n"
)
_OF_A_NAMESPACE: Final = frozenset({"Deployment", "Evaluation", "Allocation", "Job", "Service"})


class StreamApi:
    """`silent`: streams stay open and say nothing. `cut`: all that are open end now."""

    def __init__(self, state: State, routes: Routes) -> None:
        self._state = state
        self.silent = False
        self._open: set[asyncio.Transport] = set()
        self.heartbeat = HEARTBEAT
        routes.add("GET", r"/v1/event/stream", self.stream)

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def cut(self) -> None:
        """End all that are open, as a leader that is lost does."""
        for transport in list(self._open):
            transport.abort()

    async def stream(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/event/stream`."""
        text = ask.query("index")
        if text and not text.lstrip("-").isdigit():
            raise Refused(400, f'Unable to parse index: strconv.Atoi: parsing "{text}": invalid syntax')
        topics = _topics(ask.request.query.getall("topic", []))
        transport = ask.request.transport
        if not isinstance(transport, asyncio.Transport):  # it has hung up
            raise ConnectionResetError
        transport.write(HEAD)
        self._open.add(transport)
        try:
            if not _allowed(ask, topics):
                await asyncio.Event().wait()  # 200, and silence
            await self._follow(transport, topics, ask.namespace, int(text or 0))
        finally:
            self._open.discard(transport)
            transport.close()
        raise ConnectionResetError

    async def _follow(
        self, transport: asyncio.Transport, topics: dict[str, set[str]], namespace: str, since: int
    ) -> None:
        loop = asyncio.get_running_loop()
        last = since - 1
        if not self.silent:
            transport.write(b"{}\n")
        beat = loop.time() + self.heartbeat
        while not transport.is_closing():
            for line in self._after(last):
                last = line.index
                if not self.silent:
                    transport.write(_shown(line, topics, namespace))
            try:
                async with asyncio.timeout_at(beat):
                    await self._state.changed()
            except TimeoutError:
                beat = loop.time() + self.heartbeat
                if not self.silent:
                    transport.write(b"{}\n")

    def _after(self, index: int) -> list[Line]:
        return [line for line in self._state.ring if line.index > index]


def _topics(given: Iterable[str]) -> dict[str, set[str]]:
    """`Allocation:*`, `Job:name`, `Job`: topic to keys. None given: all."""
    found: dict[str, set[str]] = {}
    for text in given:
        topic, _, key = text.partition(":")
        found.setdefault(topic, set()).add(key or "*")
    return found or {"*": {"*"}}


def _allowed(ask: Ask, topics: dict[str, set[str]]) -> bool:
    """For `*`, only a policy for `*` itself counts: one for a name or a pattern gives nothing."""
    for topic in topics:
        if topic in _OF_A_NAMESPACE:
            fine = ask.rights.can_literally("read-job", ask.namespace)
        else:
            fine = ask.rights.may_read("node") if topic == "Node" else ask.rights.management
        if not fine:
            return False
    return True


def _shown(line: Line, topics: dict[str, set[str]], namespace: str) -> bytes:
    events = [event for event in line.events if _wanted(event, topics, namespace)]
    if not events:
        return b""
    return json.dumps({"Events": events, "Index": line.index}, separators=(",", ":")).encode() + b"\n"


def _wanted(event: Shape, topics: dict[str, set[str]], namespace: str) -> bool:
    if namespace != "*" and event["Namespace"] not in {"", namespace}:
        return False
    keys = topics.get("*", set()) | topics.get(event["Topic"], set())
    return "*" in keys or event["Key"] in keys or any(name in keys for name in event["FilterKeys"] or ())
