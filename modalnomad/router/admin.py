"""The admin listener: metrics, health, readiness and /debug, on an address of its own.

Nothing of it can be reached through the router's listener, where every path belongs to an endpoint. Nobody is asked
for a password here, so by default only this machine gets in, and only under a name that is this machine's: a web page
that has its own name resolve to 127.0.0.1 would otherwise read along in the browser of whoever runs this.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from modalnomad import __version__
from modalnomad.kit.http_log import http_logger
from modalnomad.model.errors import BackendConflict, BackendError, BackendRefused
from modalnomad.router import debug
from modalnomad.router.exposition import Exposition
from modalnomad.router.listeners import holder_of
from modalnomad.router.server import RouterServer

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PAGES: Final = """/healthz      200 while the router works, else 503: start it anew
/readyz       200 while requests should be sent here, else 503 with the reasons; since when what it knows is stale
/metrics      for Prometheus
/debug        routes, pools, replicas, and why the latest were started or ended
/debug/tasks  what waits for what
"""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """`host`, `port` (0: a free one): where it listens. `lost_lines`: see Exposition. Open from `start` to `close`; it
    should outlive the router's own `drain`, so that readiness can be seen to end."""

    def __init__(
        self, router: RouterServer, host: str, port: int, *, lost_lines: Callable[[], int] | None = None
    ) -> None:
        self._router = router
        self._host = host
        self._wanted = port
        self.exposition = Exposition(router, lost_lines=lost_lines)
        self._runner: web.AppRunner | None = None
        self.port = 0
        """Where it listens; 0: it does not."""

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises BackendConflict: the port is taken; BackendRefused: the address is not this machine's."""
        app = web.Application(middlewares=[self._checked])
        app.router.add_get("/", _pages)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/debug", self._debug)
        app.router.add_get("/debug/tasks", _tasks)
        runner = web.AppRunner(app, access_log=None, logger=http_logger, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._wanted)
        try:
            await site.start()
        except BaseException as error:
            await runner.cleanup()
            if isinstance(error, OSError):
                raise _refused(self._host, self._wanted, error) from error
            raise
        self._runner = runner
        self.port = int(runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening, end what is open. Idempotent."""
        runner, self._runner = self._runner, None
        self.port = 0
        if runner is not None:
            await runner.cleanup()

    # --- Pages ------------------------------------------------------------------------------------------------

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not names_this_machine(request.headers.get("Host", ""), self._host):
            raise web.HTTPForbidden(text="The admin listener answers to localhost and 127.0.0.1 only.\n")
        response = await handler(request)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def _healthz(self, request: web.Request) -> web.Response:
        return _verdict("ok", "failed", self._router.unhealthy)

    async def _readyz(self, request: web.Request) -> web.Response:
        return _verdict("ready", "not ready", self._router.unready, self._router.stale())

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", []))
        body, content_type = await asyncio.to_thread(self.exposition.render, self.exposition.read(), accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _debug(self, request: web.Request) -> web.Response:
        return await _as_json(debug.snapshot(self._router))


async def _pages(request: web.Request) -> web.Response:
    return web.Response(text=f"modalnomad {__version__}\n\n{_PAGES}")


async def _tasks(request: web.Request) -> web.Response:
    return await _as_json(debug.tasks())


async def _as_json(content: dict[str, Any]) -> web.Response:
    text = await asyncio.to_thread(json.dumps, content, indent=1)
    return web.Response(text=text + "\n", content_type="application/json")


def _verdict(good: str, bad: str, reasons: tuple[str, ...], stale: Mapping[str, float] | None = None) -> web.Response:
    """`stale` is told, but what is served from the last good answers is served."""
    content: dict[str, Any] = {"status": bad if reasons else good, "reasons": list(reasons)}
    if stale:
        content["stale"] = {source: {"since": since} for source, since in stale.items()}
    return web.json_response(content, status=503 if reasons else 200)


def names_this_machine(host: str, listens_on: str) -> bool:
    """May a request with this Host header be answered? Any may, where somebody chose to listen beyond this machine:
    which names lead there is theirs to know."""
    if not is_loopback(listens_on):
        return True
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in _LOOPBACK or name == listens_on.lower()


def is_loopback(host: str) -> bool:
    """Only this machine reaches it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(host: str, port: int, error: OSError) -> BackendError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return BackendConflict(
            f"The admin listener cannot listen on {where}: the port is held by {holder_of(port) or 'another program'}.",
            "Choose another one with router.admin_port (0 takes a free one), or none with an empty router.admin_host.",
        )
    return BackendRefused(
        f"The admin listener cannot listen on {where}: {error.strerror or error}.",
        "Check that router.admin_host is an address of this machine, and the port above 1023.",
    )
