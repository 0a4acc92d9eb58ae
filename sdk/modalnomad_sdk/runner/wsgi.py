"""WSGI applications (PEP 3333) behind the gate: one thread per request, streaming both ways with back-pressure."""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any
from urllib.parse import unquote_to_bytes

from .lifespan import Message, Receive, Scope, Send

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None
StartResponse = Callable[..., Callable[[bytes], None]]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

SPARE_THREADS = 32
"""Beside one per place: a request that was cut off at its time limit keeps its thread until the app returns."""


class ClientGone(ConnectionError):
    """The client hung up; raised into the app where it reads or yields."""


class WsgiBridge:
    """An ASGI app that runs a WSGI app."""

    def __init__(self, app: WsgiApp, threads: int) -> None:
        self.app = app
        self.multithread = threads > 1
        self.executor = ThreadPoolExecutor(threads + SPARE_THREADS, thread_name_prefix="wsgi")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # WSGI has no WebSockets
            return
        if scope["type"] == "lifespan":
            return  # nor a lifespan
        await _Request(self, scope, receive, send).run()


class _Request:
    """One request. Methods named `thread_…` run in its thread, all others on the loop."""

    def __init__(self, bridge: WsgiBridge, scope: Scope, receive: Receive, send: Send) -> None:
        self.bridge = bridge
        self.scope = scope
        self.receive = receive
        self.send = send
        self.loop = asyncio.get_running_loop()
        self.gone = False
        self.started = False
        self.pending: Message | None = None
        names = {name for name, _ in scope["headers"]}
        self.has_body = b"content-length" in names or b"transfer-encoding" in names
        self.watcher: asyncio.Task[None] | None = None

    async def run(self) -> None:
        if not self.has_body:
            self._watch()
        environ = build_environ(self.scope, io.BufferedReader(_Body(self), 65536))
        environ["wsgi.multithread"] = self.bridge.multithread
        context = contextvars.copy_context()
        try:
            await self.loop.run_in_executor(self.bridge.executor, context.run, self.thread_main, environ)
        except ClientGone:
            return
        finally:
            self.gone = True
            if self.watcher is not None:
                self.watcher.cancel()

    def _watch(self) -> None:
        """From the end of the body on: notice when the client hangs up."""
        self.watcher = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            continue
        self.gone = True

    async def next_chunk(self) -> bytes:
        """The next piece of the body; empty at its end."""
        while self.has_body:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone("the client hung up while its request body was read")
            if not message.get("more_body", False):
                self.has_body = False
                self._watch()
            if message.get("body"):
                return bytes(message["body"])
        return b""

    def thread_call(self, coroutine: Any) -> Any:
        """Run it on the loop; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def thread_main(self, environ: dict[str, Any]) -> None:
        chunks = self.bridge.app(environ, self.thread_start_response)
        try:
            for chunk in chunks:
                if chunk:
                    self.thread_write(chunk)
            self.thread_finish()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def thread_start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and exc_info[1] is not None and self.started:
            raise exc_info[1].with_traceback(exc_info[2])
        if self.pending is not None and exc_info is None:
            raise AssertionError("start_response was called twice without exc_info")
        self.pending = {
            "type": "http.response.start",
            "status": int(status.split(" ", 1)[0]),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        return self.thread_write

    def thread_write(self, chunk: bytes) -> None:
        if self.gone:
            raise ClientGone("the client hung up")
        self.thread_call(self._send_chunk(chunk, more=True))

    def thread_finish(self) -> None:
        self.thread_call(self._send_chunk(b"", more=False))

    async def _send_chunk(self, chunk: bytes, *, more: bool) -> None:
        """Waits while the client is slow."""
        if not self.started:
            if self.pending is None:
                raise AssertionError("the WSGI application returned without calling start_response")
            self.started = True
            await self.send(self.pending)
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})


class _Body(io.RawIOBase):
    """The request body as a blocking stream for the request's thread."""

    def __init__(self, request: _Request) -> None:
        self._request = request
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._request.thread_call(self._request.next_chunk())
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def build_environ(scope: Scope, body: io.BufferedReader) -> dict[str, Any]:
    """The WSGI environment of an ASGI request (PEP 3333; strings are bytes as latin-1)."""
    query = scope["query_string"].decode("latin-1")
    raw_path = scope.get("raw_path") or scope["path"].encode()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(raw_path).decode("latin-1"),
        "QUERY_STRING": query,
        "REQUEST_URI": raw_path.decode("latin-1") + (f"?{query}" if query else ""),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if scope.get("client"):
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = scope["client"][0], str(scope["client"][1])
    for name, value in scope["headers"]:
        _add_header(environ, name.decode("latin-1"), value.decode("latin-1"))
    host, _, port = environ.get("HTTP_HOST", "localhost").rpartition(":")
    if not port.isdigit():
        host, port = environ.get("HTTP_HOST", "localhost"), ""
    environ["SERVER_NAME"] = host
    environ["SERVER_PORT"] = port or ("443" if environ["wsgi.url_scheme"] == "https" else "80")
    return environ


def _add_header(environ: dict[str, Any], name: str, value: str) -> None:
    if "_" in name:
        return  # `X_A` and `X-A` would be one name here: nobody may pass one off as the other
    key = name.upper().replace("-", "_")
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = f"HTTP_{key}"
    if key in environ:
        value = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}"
    environ[key] = value
