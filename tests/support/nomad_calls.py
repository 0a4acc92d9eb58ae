"""Bare calls of a Nomad API, as a test of a server asks them: nothing is retried, nothing translated."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

PATIENCE = 40.0
"""Seconds after which a test has failed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as it came."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def index(self) -> int:
        """X-Nomad-Index; -1: none was sent."""
        return int(self.headers.get("X-Nomad-Index", -1))


class Calls:
    """A client of one server. `token`: X-Nomad-Token of each call that gives none. `tls`: of https."""

    def __init__(self, address: str, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.token = token
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls or True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def _request(self, method: str, path: str, body: Any, token: str | None, params: Mapping[str, Any]) -> Any:
        assert self._session is not None, "the client is not open"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        secret = self.token if token is None else token
        texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in params.items()}
        headers = {"X-Nomad-Token": secret} if secret else {}
        return self._session.request(method, self.address + path, data=data, params=texts, headers=headers)

    async def call(self, method: str, path: str, body: Any = None, *, token: str | None = None, **params: Any) -> Reply:
        """`params`: the query. Raises TimeoutError after PATIENCE seconds."""
        async with asyncio.timeout(PATIENCE), self._request(method, path, body, token, params) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, **params: Any) -> Any:
        """The decoded answer of a GET that must succeed."""
        reply = await self.call("GET", path, **params)
        assert reply.status == 200, f"{path}: {reply.status} {reply.text}"
        return reply.json

    async def put(self, path: str, body: Any = None, **params: Any) -> Any:
        """The decoded answer of a PUT that must succeed; None when it has no body."""
        reply = await self.call("PUT", path, body, **params)
        assert reply.status == 200, f"{path}: {reply.status} {reply.text}"
        return reply.json if reply.body else None

    @asynccontextmanager
    async def open(
        self, path: str, *, token: str | None = None, **params: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that is read as it comes."""
        async with self._request("GET", path, None, token, params) as response:
            yield response

    async def until(self, path: str, holds: Any, **params: Any) -> Any:
        """The decoded answer of a GET from which on `holds(answer)` is true, by blocking queries."""
        index = 0
        async with asyncio.timeout(PATIENCE):
            while True:
                reply = await self.call("GET", path, **(params | ({"index": index, "wait": "5s"} if index else {})))
                if reply.status == 200 and holds(reply.json):
                    return reply.json
                if reply.index <= index or reply.status != 200:
                    await asyncio.sleep(0.02)  # not there yet, or a table that does not block
                index = max(reply.index, 1)
