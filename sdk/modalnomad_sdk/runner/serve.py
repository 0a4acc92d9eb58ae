"""The HTTP server of managed endpoints: uvicorn's protocols on our loop, without its main loop, signals or logs.

The only file that imports uvicorn.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import socket
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from modalnomad_sdk.contract import WEBSOCKET_MESSAGE_LIMIT

from .door_answers import BUSY
from .lifespan import App
from .sockets import BACKLOG, HEAD_TIME, Strangers

KEEP_ALIVE = 3600
"""Seconds. The router decides how long an idle connection lives: closing first would race with its next request."""
HEAD_LIMIT = 1024 * 1024
"""Bytes; generous, because the router has checked the head."""


def _websockets(**arguments: Any) -> asyncio.Protocol:
    """The WebSocket protocol, imported when the first connection wants it: most replicas never do."""
    modern = importlib.util.find_spec("uvicorn.protocols.websockets.websockets_sansio_impl")
    if modern is None:
        module = importlib.import_module("uvicorn.protocols.websockets.websockets_impl")
        made: asyncio.Protocol = module.WebSocketProtocol(**arguments)
        return made
    http11: Any = importlib.import_module("websockets.http11")
    http11.MAX_LINE_LENGTH, http11.MAX_NUM_HEADERS = HEAD_LIMIT, 1024
    sansio: asyncio.Protocol = importlib.import_module(modern.name).WebSocketsSansIOProtocol(**arguments)
    return sansio


def _guarded(base: Any, strangers: Strangers) -> Any:
    """The same protocol, which ends a connection that sends no whole head within HEAD_TIME, or too long a one."""

    class Guarded(base):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.is_known = False
            self.heard = 0
            self.silence = asyncio.get_running_loop().call_later(HEAD_TIME, transport.abort)
            strangers.came(transport)

        def data_received(self, data: bytes) -> None:
            if self.is_known:
                super().data_received(data)
                return
            self.heard += len(data)
            if self.heard > HEAD_LIMIT:
                self.transport.abort()  # httptools would take any length
                return
            super().data_received(data)
            if self.cycle is not None or self.transport.get_protocol() is not self:
                self.know()

        def connection_lost(self, exc: Exception | None) -> None:
            self.know()
            super().connection_lost(exc)

        def know(self) -> None:
            # A request, or the WebSocket protocol has taken over; or it has ended.
            self.is_known = True
            self.silence.cancel()
            strangers.known(self.transport)

    return Guarded


def _is_idle(connection: Any, kind: Any) -> bool:
    """An HTTP connection (not a WebSocket) on which no request runs."""
    if not isinstance(connection, kind) or connection.transport.is_closing():
        return False
    return connection.cycle is None or bool(connection.cycle.response_complete)


class Server:
    """Serves one ASGI app on connections."""

    def __init__(self, app: App) -> None:
        has_httptools = importlib.util.find_spec("httptools") is not None
        has_websockets = importlib.util.find_spec("websockets") is not None
        arguments: dict[str, Any] = {
            "http": "httptools" if has_httptools else "h11",
            "ws": _websockets if has_websockets else "none",
            "ws_max_size": WEBSOCKET_MESSAGE_LIMIT,
            "ws_per_message_deflate": False,
            "lifespan": "off",
            "interface": "asgi3",
            "log_config": None,
            "log_level": "warning",
            "access_log": False,
            "proxy_headers": False,
            "server_header": False,
            "date_header": False,
            "timeout_keep_alive": KEEP_ALIVE,
            "h11_max_incomplete_event_size": HEAD_LIMIT,
        }
        self.config = Config(app, **arguments)
        self.config.load()
        self.strangers = Strangers()
        self._factory = _guarded(self.config.http_protocol_class, self.strangers)
        self.state = ServerState()
        self._server: asyncio.AbstractServer | None = None

    def protocol(self) -> asyncio.Protocol:
        """A protocol for one connection."""
        made: asyncio.Protocol = self._factory(config=self.config, server_state=self.state, app_state={})
        return made

    async def listen(self, listener: socket.socket) -> None:
        """Accept from here on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.protocol, sock=listener, backlog=BACKLOG)

    def stop_listening(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def close(self, within: float) -> None:
        """End all connections: idle ones at once, WebSockets with code 1012, others with their request, and what is
        left after `within` seconds with a cut that nobody takes for a clean end.

        Idle ones end with a refusal: it answers the request that a router sends at this very moment, which nobody reads
        here any more. Without it that router could not know that its request did not run. Where none is on its way, the
        router takes it for the end of the connection."""
        for connection in list(self.state.connections):
            if _is_idle(connection, self.config.http_protocol_class):
                connection.transport.write(BUSY.last())
            connection.shutdown()
        deadline = asyncio.get_running_loop().time() + within
        while self.state.connections or self.state.tasks:
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(0.005)
        for connection in list(self.state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # they learn that they are lost, before their requests are cancelled
        for task in list(self.state.tasks):
            task.cancel()
