"""One HTTP client for Nomad and Consul: every request has a time limit, verified TLS and errors that say what was asked
of whom, what came back and what to do next. Blocking queries, streams and commands all go through it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from modalnomad.hashicorp.tls import PLAIN_TO_TLS, Trust, failed_tls
from modalnomad.model.errors import BackendError, BackendRefused, BackendUnreachable

CONNECT_LIMIT: Final = 3.0
"""Seconds to connect."""
ANSWER_LIMIT: Final = 10.0
"""Seconds for an answer to anything but a blocking query or a stream."""
TEXT_SHOWN: Final = 500
"""Characters of a server's own words that an error shows."""

Parameters = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Server:
    """Whom to ask, and as who."""

    name: str
    """`Nomad`, `Consul`."""
    address: str
    """`http[s]://host:port`, without a final slash."""
    setting: str
    """What to correct when it does not answer: `NOMAD_ADDR (nomad.address)`."""
    headers: Callable[[], Mapping[str, str]] = field(default=dict, repr=False)
    """Asked before each request: what is sent along. Holds the token, which may be another one by now."""
    trust: Trust | None = None
    """With https. None: the system's certificates."""
    token_setting: str = ""
    """`NOMAD_TOKEN (nomad.token)`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer to the end."""

    status: int
    headers: Mapping[str, str]
    """Names are case-insensitive."""
    body: bytes

    @property
    def text(self) -> str:
        """Without what is wrong in it."""
        return self.body.decode("utf-8", "replace").strip()

    def json(self) -> Any:
        """Raises ValueError."""
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("it is nested too deep") from None


class ServerRefused(BackendRefused):
    """An answer that is no success. `status` and `text` are the server's own."""

    def __init__(self, message: str, hint: str | None, status: int, text: str) -> None:
        super().__init__(message, hint)
        self.status = status
        self.text = text


class HttpClient:
    """Connections to one server. Open it on the loop that uses it; `close` ends them all."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._trust = server.trust or Trust(server.name.lower())
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Parameters | None = None,
        data: Any = None,
        ok: tuple[int, ...] = (200,),
        limit: float = ANSWER_LIMIT,
    ) -> Answer:
        """The answer, when its status is in `ok`. `data`: bytes as they are, anything else as JSON. Raises
        BackendUnreachable (no answer within `limit` seconds: it may have been done all the same), ServerRefused."""
        async with self.open(method, path, params=params, data=data, ok=ok, limit=limit) as response:
            try:
                body = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._unreachable(method, path, error) from error
            return Answer(response.status, response.headers, body)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        params: Parameters | None = None,
        data: Any = None,
        ok: tuple[int, ...] = (200,),
        limit: float | None = None,
        silence: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer's head, its body still to be read. `limit`: seconds for all of it; None: none. `silence`: seconds
        without a byte. Raises as `request`; reading the body may raise aiohttp.ClientError and TimeoutError."""
        body = data if data is None or isinstance(data, bytes) else json.dumps(data, separators=(",", ":")).encode()
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=CONNECT_LIMIT, sock_read=silence)
        try:
            response = await self._opened().request(
                method,
                self.server.address + path,
                params=_texts(params),
                headers=self.server.headers(),
                data=body,
                timeout=timeout,
                server_hostname=self._trust.server_name,
                allow_redirects=False,  # the token would go along, to whatever is named
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(method, path, error) from error
        try:
            if response.status not in ok:
                raise await self._refused(method, path, response)
            yield response
        finally:
            response.close() if response.content.at_eof() is False else response.release()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=0, ssl=self._trust.context or True)
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20, auto_decompress=True)
        return self._session

    def _unreachable(self, method: str, path: str, error: BaseException) -> BackendUnreachable:
        server = self.server
        what, hint = self._trust.told(error, server.address, server.setting) or (
            broken(error),
            f"is {server.name} running there? the address comes from {server.setting}",
        )
        return BackendUnreachable(f"{server.name} at {server.address} does not answer {method} {path}: {what}", hint)

    async def _refused(self, method: str, path: str, response: aiohttp.ClientResponse) -> BackendError:
        server = self.server
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                text = (await response.read()).decode("utf-8", "replace").strip()
        except (aiohttp.ClientError, TimeoutError, OSError):
            text = ""
        if PLAIN_TO_TLS in text:
            return speaks_tls(server.name, server.address, f"{method} {path}", server.setting)
        shown = " ".join(text.split())[:TEXT_SHOWN] or "no reason"
        hint = None
        if response.status in {401, 403}:
            origin = server.token_setting or server.setting
            hint = f"the token comes from {origin}; `modalnomad doctor` tells its rights"
            if not server.headers():
                hint = f"no token is given: {origin}"
        elif "leader" in text:
            hint = f"too few of {server.name}'s servers run, or they are electing a leader just now: try again"
        if 300 <= response.status < 400:
            shown = f"it is elsewhere, at {response.headers.get('Location', 'no address')[:TEXT_SHOWN]}"
            hint = f"nobody is followed with a token: correct {server.setting}"
        message = f"{server.name} at {server.address} answered {method} {path} with {response.status}: {shown}"
        return ServerRefused(message, hint, response.status, text)

    async def close(self) -> None:
        """Twice does nothing more."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _texts(params: Parameters | None) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in (params or {}).items()
    }


def broken(error: BaseException) -> str:
    """Why there was no answer, or no whole one, without what only a programmer reads."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke off"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if (tls := failed_tls(error)) is not None:
        return (tls.reason or str(tls)).replace("_", " ").lower()  # its errno is none of the operating system's
    if isinstance(cause, OSError) and cause.errno is not None:
        return os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or str(cause)
    return str(cause) or type(cause).__name__


def speaks_tls(name: str, address: str, what: str, setting: str) -> BackendUnreachable:
    """What to say when plain HTTP came to a port of TLS."""
    return BackendUnreachable(
        f"{name} at {address} does not answer {what}: it speaks TLS there, and was asked in plain HTTP",
        f"make it https:// in {setting}",
    )
