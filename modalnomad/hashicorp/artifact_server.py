"""Artifacts over HTTP, for the nodes of a cluster: `GET /artifacts/<SHA-256>`, with or without `.tar.gz`.

Nothing is listed and nobody is asked who they are: only somebody who knows the content's hash gets it. Nodes compare
what they got with it (Nomad by the job's checksum, the launcher by itself).
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Final, Protocol

from aiohttp import web

from modalnomad.kit.http_log import http_logger
from modalnomad.model.errors import BackendConflict, BackendError, BackendRefused, NotFound
from modalnomad.model.ids import Digest

logger = logging.getLogger("modalnomad.artifacts")

NAME: Final = re.compile(r"/artifacts/([0-9a-f]{64})(?:\.tar\.gz)?")
"""The ending makes Nomad unpack it: https://developer.hashicorp.com/nomad/docs/job-specification/artifact"""
SILENCE: Final = 60.0
"""Seconds a reader may take for one piece of about a MiB."""
IDLE: Final = 30.0
"""Seconds that a connection may be open without a request: anybody may open them, and each is one of the router's
files."""
PATIENCE: Final = 5.0
"""Seconds that downloads get to end when the server closes."""


class Readable(Protocol):
    """Where the content comes from."""

    async def size(self, digest: Digest) -> int:
        """Bytes. Raises NotFound, BackendRefused."""

    def read(self, digest: Digest) -> AsyncIterator[bytes]:
        """The content in pieces."""


class ArtifactServer:
    """`host`, `port` (0: a free one): where it listens from `start` to `close`."""

    def __init__(self, artifacts: Readable, host: str, port: int) -> None:
        self._artifacts = artifacts
        self._host = host
        self._wanted = port
        self._runner: web.AppRunner | None = None
        self.port = 0
        """Where it listens; 0: it does not."""

    async def start(self) -> None:
        """Listen. Raises BackendConflict: the port is taken; BackendRefused: the address is not this machine's."""
        app = web.Application(client_max_size=1)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=http_logger,
            handle_signals=False,
            shutdown_timeout=PATIENCE,
            keepalive_timeout=IDLE,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._wanted).start()
        except BaseException as error:
            await runner.cleanup()
            if isinstance(error, OSError):
                raise self._refused(error) from error
            raise
        self._runner = runner
        self.port = int(runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening; what is being read gets a moment to end. Idempotent."""
        runner, self._runner = self._runner, None
        self.port = 0
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        # As it was sent: what is decoded could name a thing twice.
        match = NAME.fullmatch(request.raw_path)
        if match is None:
            return _problem(404, "There is nothing here but /artifacts/<SHA-256 in lower-case hex>.")
        if request.method not in {"GET", "HEAD"}:
            return _problem(405, "Artifacts are read with GET or HEAD.", {"Allow": "GET, HEAD"})
        digest = Digest(match[1])
        try:
            size = await self._artifacts.size(digest)
        except NotFound:
            return _problem(404, f"There is no artifact {digest}: deploy the App again.")
        except BackendError as error:
            logger.warning("artifact %s cannot be handed out: %s", digest, error.message)
            return _problem(503, "The artifacts cannot be read now; the router's log says why.", {"Retry-After": "5"})
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size),
                "Cache-Control": "public, max-age=31536000, immutable",
                "ETag": f'"{digest}"',
                "X-Content-Type-Options": "nosniff",
            }
        )
        await response.prepare(request)
        if request.method == "GET":
            await self._send(digest, response)
        return response

    async def _send(self, digest: Digest, response: web.StreamResponse) -> None:
        """A failure from here on ends the connection short of the length it was told: nobody takes that for whole."""
        try:
            async for chunk in self._artifacts.read(digest):
                async with asyncio.timeout(SILENCE):
                    await response.write(chunk)
            await response.write_eof()
        except (ConnectionError, TimeoutError) as error:
            logger.info("whoever read artifact %s went away: %s", digest, error or type(error).__name__)
            raise ConnectionResetError from error

    def _refused(self, error: OSError) -> BackendError:
        where = f"{self._host}:{self._wanted}"
        if error.errno == errno.EADDRINUSE:
            return BackendConflict(
                f"Artifacts cannot be handed out on {where}: the port is taken.",
                "Does a router run here already? Another needs --port, --admin-port and --artifacts-port of its own.",
            )
        return BackendRefused(
            f"Artifacts cannot be handed out on {where}: {error.strerror or error}.",
            "Check that artifacts.host is an address of this machine, and the port above 1023.",
        )


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    """RFC 9457, as the router's own answers."""
    body = {"type": "about:blank", "title": {404: "Not Found", 405: "Method Not Allowed"}.get(status, "Unavailable")}
    text = json.dumps({**body, "status": status, "detail": detail}) + "\n"
    return web.Response(
        status=status,
        text=text,
        headers={"Content-Type": "application/problem+json", "Cache-Control": "no-store", **(headers or {})},
    )
