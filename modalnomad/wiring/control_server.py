"""The control socket of `up`: who may connect, what is called, and what ends with a connection."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import ValidationError

from modalnomad import __version__
from modalnomad.embedded.store import translated
from modalnomad.kit.http_log import http_logger
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError, BackendRefused, ModalNomadError
from modalnomad.wiring.control_protocol import (
    HEARTBEAT,
    MESSAGE_LIMIT,
    PATH,
    PROTOCOL,
    check_arguments,
    error_to_record,
    free_place,
    make_place,
)

logger = logging.getLogger("modalnomad.control")

CLIENTS = 100
"""Connected at the same time."""
CALLS = 2000
"""Of one client under way at the same time."""
PATIENCE = 5.0
"""Seconds a client has to take the word that all ends."""


class Closable(Protocol):
    """What belongs to one connection."""

    async def close(self) -> None:
        """The connection ended."""


class Client:
    """One connection, as the handlers of calls see it."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self._ws = ws
        self._owned: dict[str, Closable] = {}
        self.calls: dict[int, asyncio.Task[None]] = {}
        self.tasks = Tasks("control client")

    def own(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` made for this connection, once; it is closed with it."""
        if name not in self._owned:
            self._owned[name] = make()
        return self._owned[name]

    async def send(self, message: Mapping[str, Any]) -> None:
        """To a client that is gone: nothing."""
        try:
            await self._ws.send_str(json.dumps(message, separators=(",", ":"), default=str))
        except (ConnectionError, RuntimeError):
            return

    async def end(self) -> None:
        """Cancel its calls, close what it owned."""
        await self.tasks.close()
        for owned in reversed(self._owned.values()):
            await owned.close()

    async def say_goodbye(self) -> None:
        """All ends."""
        await self.send({"stopping": True})
        await self._ws.close(code=WSCloseCode.GOING_AWAY)


class Call:
    """One call under way."""

    def __init__(self, client: Client, number: int, arguments: Mapping[str, Any]) -> None:
        self.client = client
        self.arguments = arguments
        self._number = number

    async def progress(self, value: Any) -> None:
        """Tell the caller something before the result."""
        await self.client.send({"id": self._number, "progress": value})


Handler = Callable[[Call], Awaitable[Any]]
"""Returns what JSON can hold. Raises ModalNomadError; a ValidationError is about the arguments."""


class ControlServer:
    """`handle` what can be called, then enter it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._handlers: dict[str, Handler] = {}
        self._clients: set[Client] = set()
        self._runner: web.AppRunner | None = None
        self._stopping = False

    def handle(self, name: str, handler: Handler) -> None:
        """Add a call."""
        if name in self._handlers:
            raise ValueError(f"{name} is handled already")
        self._handlers[name] = handler

    async def __aenter__(self) -> Self:
        """Listen. Raises BackendRefused."""
        path = await asyncio.to_thread(make_place, self._home)
        with translated(f"listen on {path}"):
            listener = _listen(path)
        application = web.Application()
        application.router.add_get(PATH, self._serve)
        self._runner = web.AppRunner(
            application, handle_signals=False, access_log=None, logger=http_logger, shutdown_timeout=PATIENCE
        )
        try:
            await self._runner.setup()
            await web.SockSite(self._runner, listener).start()
        except BaseException:
            listener.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.to_thread(free_place, self._home)

    async def stop(self) -> None:
        """No new clients; those there are told, and what they own is closed. Twice does nothing more."""
        self._stopping = True
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(client.say_goodbye() for client in tuple(self._clients)))
        except TimeoutError:
            logger.info("a client of the control socket does not listen any more")
        for client in tuple(self._clients):
            await client.end()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if not _is_ours(request):
            raise web.HTTPForbidden
        if self._stopping:
            raise web.HTTPGone  # `STOPPING` of the protocol
        if len(self._clients) >= CLIENTS:
            raise web.HTTPServiceUnavailable
        ws = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=MESSAGE_LIMIT, compress=False)
        if not ws.can_prepare(request):
            raise web.HTTPBadRequest
        client = Client(ws)
        self._clients.add(client)
        try:
            await ws.prepare(request)
            await client.send({"hello": PROTOCOL, "version": __version__, "pid": os.getpid()})
            async for message in ws:
                if message.type is not WSMsgType.TEXT or not self._take(client, message.data):
                    await ws.close(code=WSCloseCode.POLICY_VIOLATION)
                    break
        finally:
            self._clients.discard(client)
            await client.end()
        return ws

    def _take(self, client: Client, text: str) -> bool:
        """One message. False: this is nobody who speaks our protocol."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(message, dict):
            return False
        if isinstance(cancelled := message.get("cancel"), int):
            if (task := client.calls.get(cancelled)) is not None:
                task.cancel()
            return True
        number, name = message.get("id"), message.get("call")
        if not isinstance(number, int) or not isinstance(name, str) or number in client.calls:
            return False
        if len(client.calls) >= CALLS or self._stopping:
            return False
        work = self._answer(client, number, name, message.get("arguments"))
        task = client.tasks.spawn(work, f"call {name[:50]}")
        client.calls[number] = task
        task.add_done_callback(lambda _: client.calls.pop(number, None))
        return True

    async def _answer(self, client: Client, number: int, name: str, arguments: Any) -> None:
        try:
            if (handler := self._handlers.get(name)) is None:
                raise BackendRefused(
                    f"the running modalnomad up ({__version__}) does not know the call {name!r:.60}",
                    "start it again with this release of modalnomad",
                )
            result = await handler(Call(client, number, check_arguments(arguments)))
            await client.send({"id": number, "result": result})
        except ModalNomadError as error:
            await client.send({"id": number, "error": error_to_record(error)})
        except ValidationError as error:
            refusal = BackendRefused(
                f"the arguments of the call {name} are wrong in {error.error_count()} places",
                "use the same release of modalnomad for both",
            )
            await client.send({"id": number, "error": error_to_record(refusal)})
        except Exception:
            logger.exception("the call %s failed", name)
            failure = BackendError(f"modalnomad up failed at {name}", "its log says why")
            await client.send({"id": number, "error": error_to_record(failure)})


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(CLIENTS)
    except BaseException:
        listener.close()
        path.unlink(missing_ok=True)
        raise
    return listener


def _is_ours(request: web.Request) -> bool:
    """Where the system tells who connects: this user, or the superuser."""
    peer = request.transport.get_extra_info("socket") if request.transport is not None else None
    if peer is None or not hasattr(socket, "SO_PEERCRED"):
        return peer is not None
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user in (0, os.geteuid())
