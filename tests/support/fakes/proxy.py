"""Stands before a server, real or fake, and spoils what passes: so that one fault is the same in front of both.

async with FaultyProxy(nomad.address) as proxy:
    client = NomadApi(HttpClient(Server("Nomad", proxy.address, ...)))
    with proxy.rule("POST .*/dispatch", lose=True, after=True, times=1): ...
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.support.ports import held_port, stop_listening

NOT_PASSED: Final = frozenset({"transfer-encoding", "connection", "keep-alive", "host", "content-length"})
"""Headers that are of one connection, or that aiohttp writes itself."""
MOMENT: Final = 0.05
"""Seconds that a connection has to end by itself. 0 would be no limit."""


@dataclass(eq=False)
class Rule:
    """What happens to requests whose `METHOD path?query` the pattern matches from its beginning.

    `status`: answered so, with `text`. `lose`: never answered. `after`: the server gets the request all the same, and
    the answer is spoilt when it has come.
    """

    pattern: str
    times: float = float("inf")
    status: int = 500
    text: str = ""
    lose: bool = False
    after: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    met: int = 0
    """How many requests it has spoilt."""


class FaultyProxy:
    """In front of `target`, an address without a path. `requests`: method and path with query of each, in order."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.port = 0
        self.requests: list[str] = []
        self._rules: list[Rule] = []
        self._passing = asyncio.Event()
        self._silent: set[re.Pattern[str]] = set()
        self._open: list[tuple[str, web.Request]] = []
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._held = ExitStack()

    @property
    def address(self) -> str:
        """`http://127.0.0.1:port`, the same after it was gone."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._passing.set()
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        self.port = self._held.enter_context(held_port())
        await self.come_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        assert self._session is not None
        if self._listening is not None:
            await stop_listening(self._listening)
        await self._runner.cleanup()
        await self._session.close()
        self._held.close()

    # --- faults --------------------------------------------------------------------------------------------------

    async def go(self) -> None:
        """Hang up on everybody and refuse connections; the server behind goes on."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        assert self._runner is not None
        assert self._runner.server is not None
        await stop_listening(listening)
        self.cut()
        await self._runner.server.shutdown(MOMENT)

    async def come_back(self) -> None:
        """Listen again where it listened before."""
        if self._listening is not None:
            return
        assert self._runner is not None
        assert self._runner.server is not None
        self._listening = await asyncio.get_running_loop().create_server(
            self._runner.server, "127.0.0.1", self.port, reuse_address=True
        )

    @asynccontextmanager
    async def gone(self) -> AsyncIterator[None]:
        """Not there within the block."""
        await self.go()
        try:
            yield
        finally:
            await self.come_back()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Takes connections and requests and answers nothing within the block; nothing of answers under way either."""
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    @contextmanager
    def silent(self, pattern: str) -> Iterator[None]:
        """Answers to these requests stay open and say nothing within the block; what was said meanwhile is lost."""
        compiled = re.compile(pattern)
        self._silent.add(compiled)
        try:
            yield
        finally:
            self._silent.discard(compiled)

    def cut(self, pattern: str = "") -> int:
        """Break off the connections of these requests, if they are under way → how many."""
        cut = 0
        for what, request in self._open:
            if re.match(pattern, what) and request.transport is not None:
                request.transport.abort()
                cut += 1
        return cut

    def under_way(self, pattern: str = "") -> int:
        """How many of these requests are."""
        return sum(bool(re.match(pattern, what)) for what, _ in self._open)

    @contextmanager
    def rule(
        self,
        pattern: str,
        *,
        times: float = float("inf"),
        status: int = 500,
        text: str = "",
        lose: bool = False,
        after: bool = False,
    ) -> Iterator[Rule]:
        """See Rule; it holds within the block."""
        made = Rule(pattern, times, status, text, lose, after)
        self._rules.append(made)
        try:
            yield made
        finally:
            self._rules.remove(made)
            made.over.set()

    # --- passing on ----------------------------------------------------------------------------------------------

    def _rule(self, what: str) -> Rule | None:
        for rule in self._rules:
            if rule.met < rule.times and re.match(rule.pattern, what):
                rule.met += 1
                return rule
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self._listening is None:  # its connection was being made while this went
            return _cut(request)
        what = f"{request.method} {request.raw_path}"
        self.requests.append(what)
        entry = (what, request)
        self._open.append(entry)
        try:
            return await self._answer(request, what)
        finally:
            self._open.remove(entry)

    async def _answer(self, request: web.Request, what: str) -> web.StreamResponse:
        body = await request.read()
        await self._passing.wait()
        rule = self._rule(what)
        if rule is not None:
            if rule.after:
                async with self._forward(request, body) as answer:
                    await answer.read()
            if rule.lose:
                await rule.over.wait()
                if request.transport is not None:
                    request.transport.abort()
            return web.Response(status=rule.status, text=rule.text)
        try:
            async with self._forward(request, body) as answer:
                return await self._pass_on(request, what, answer)
        except (aiohttp.ClientError, OSError):
            # What is behind is gone: so is this.
            return _cut(request)

    @asynccontextmanager
    async def _forward(self, request: web.Request, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in NOT_PASSED]
        # As it came: a job's id holds an encoded slash.
        url = URL(self.target + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, skip_auto_headers=("User-Agent", "Accept-Encoding")
        ) as answer:
            yield answer

    async def _pass_on(self, request: web.Request, what: str, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in NOT_PASSED]
        response = web.StreamResponse(status=answer.status, headers=CIMultiDict(headers))
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await self._passing.wait()
            if not any(pattern.match(what) for pattern in self._silent):
                await response.write(data)
        with suppress(ConnectionError):
            await response.write_eof()
        return response


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)
