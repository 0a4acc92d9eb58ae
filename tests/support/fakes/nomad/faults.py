"""What goes wrong between a client and the servers, on purpose."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from tests.support.fakes.nomad.state import Refused

Answering = Callable[[], Awaitable[web.StreamResponse]]


@dataclass
class Fault:
    """`kind`: `refuse` (not done), `garble` (done, but refused), `swallow` (done, never answered), `cut` (done,
    connection gone), `delay` (done after `seconds`)."""

    kind: str
    pattern: re.Pattern[str]
    left: int
    seconds: float = 0.0
    refused: Refused | None = None
    seen: int = 0
    """Requests it was applied to."""


class Faults:
    """Patterns are searched in `METHOD /path`, path decoded: `POST .*/dispatch`. The newest that fits applies."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def refuse(self, pattern: str, times: int = 1, status: int = 500, text: str = "No cluster leader") -> Fault:
        """Answered with an error, not done."""
        return self._add(Fault("refuse", re.compile(pattern), times, refused=Refused(status, text)))

    def garble(self, pattern: str, times: int = 1, status: int = 500, text: str = "rpc error: EOF") -> Fault:
        """Done, and answered with an error."""
        return self._add(Fault("garble", re.compile(pattern), times, refused=Refused(status, text)))

    def swallow(self, pattern: str, times: int = 1) -> Fault:
        """Done, and never answered: the client's time limit ends it."""
        return self._add(Fault("swallow", re.compile(pattern), times))

    def cut(self, pattern: str, times: int = 1) -> Fault:
        """Done, and the connection goes instead of the answer."""
        return self._add(Fault("cut", re.compile(pattern), times))

    def delay(self, pattern: str, seconds: float, times: int = 1) -> Fault:
        """Done, and answered, later."""
        return self._add(Fault("delay", re.compile(pattern), times, seconds=seconds))

    def clear(self) -> None:
        """All is well again."""
        self._faults.clear()

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    async def apply(self, request: web.BaseRequest, answering: Answering) -> web.StreamResponse:
        """The answer as it leaves. Raises Refused, ConnectionResetError."""
        name = f"{request.method} {request.path}"
        fault = next((f for f in reversed(self._faults) if f.left > 0 and f.pattern.search(name)), None)
        if fault is None:
            return await answering()
        fault.left -= 1
        fault.seen += 1
        if fault.kind == "refuse" and fault.refused is not None:
            raise fault.refused
        if fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
            return await answering()
        await answering()
        if fault.kind == "garble" and fault.refused is not None:
            raise fault.refused
        if fault.kind == "swallow":
            await asyncio.Event().wait()  # until the client has hung up
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError
