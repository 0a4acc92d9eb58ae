"""A Docker engine's API as far as images are built, pulled and pushed with it, on a Unix socket; shapes as measured on
an engine 20.10 (an error after the headers is an event, statuses and texts are the engine's).

async with FakeDocker(folder) as engine:
    engine.images["localhost/base:1"] = {"Id": "sha256:…"}
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Build:
    """A build that was asked for."""

    tag: str
    labels: Mapping[str, str]
    arguments: Mapping[str, str]
    query: Mapping[str, str]
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def dockerfile(self) -> str:
        """Its text."""
        return self.files[self.query["dockerfile"]].decode()


class FakeDocker:
    """`images`: local ones by name. `registry`: digests by name; None: nobody answers there. `script`: what each
    coming build says, then success; an asyncio.Event in it is waited for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, dict[str, Any]] = {}
        self.registry: dict[str, str] | None = {}
        self.builds: list[Build] = []
        self.script: deque[Sequence[Event | asyncio.Event]] = deque()
        self.pulls: list[str] = []
        self.pushes: list[str] = []
        self.push_error = ""
        self.containerd = False
        """Images are kept in containerd's store, as by engines from 29 on: a push tells its digest in words only."""
        self.refuses = ""
        """Text with which the next build is answered 400."""
        self.silent = False
        """Pulls say nothing."""
        self.began = asyncio.Event()
        """A build's stream."""
        self.left = asyncio.Event()
        """Whoever read a build's stream is gone before its end."""
        self._runner: web.AppRunner | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For whoever uses it."""
        return {"DOCKER_HOST": f"unix://{self.folder}/docker.sock"}

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_get("/version", self._version)
        application.router.add_get("/{v}/version", self._version)
        application.router.add_get("/{v}/images/{name:.+}/json", self._inspect)
        application.router.add_get("/{v}/distribution/{name:.+}/json", self._distribution)
        application.router.add_post("/{v}/build", self._build)
        application.router.add_post("/{v}/images/create", self._pull)
        application.router.add_post("/{v}/images/{name:.+}/push", self._push)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.folder / "docker.sock")).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Arch": "amd64"})

    async def _inspect(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.images:
            return web.json_response({"message": f"No such image: {name}"}, status=404)
        return web.json_response(self.images[name])

    async def _distribution(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if self.registry is None:
            words = 'Get "http://registry.test/v2/": dial tcp 127.0.0.1:9: connect: connection refused'
            return web.json_response({"message": words}, status=500)
        if name not in self.registry:
            return web.json_response({"message": "manifest unknown: manifest unknown"}, status=404)
        return web.json_response({"Descriptor": {"digest": self.registry[name]}})

    async def _build(self, request: web.Request) -> web.StreamResponse:
        files = {}
        with tarfile.open(fileobj=io.BytesIO(await request.read())) as tar:
            for member in tar:
                content = tar.extractfile(member)
                files[member.name] = content.read() if content is not None else b""
        query = dict(request.query)
        labels, arguments = (json.loads(query.get(name, "{}")) for name in ("labels", "buildargs"))
        build = Build(query["t"], labels, arguments, query, files)
        self.builds.append(build)
        if self.refuses:
            return web.json_response({"message": self.refuses}, status=400)
        events: list[Event | asyncio.Event] = [*(self.script.popleft() if self.script else ())]
        answer = await self._say(request, events)
        if not any(isinstance(event, Mapping) and "error" in event for event in events):
            id = f"sha256:{len(self.builds):064x}"
            self.images[build.tag] = {"Id": id, "Config": {"Labels": dict(labels)}}
            await answer.write(json.dumps({"aux": {"ID": id}}).encode() + b"\r\n")
        return answer

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        name = f"{request.query['fromImage']}:{request.query.get('tag', 'latest')}"
        self.pulls.append(name)
        if self.silent:
            await self._say(request, [asyncio.Event()])
        if self.registry is None or name not in self.registry:
            words = f"manifest for {name} not found: manifest unknown: manifest unknown"
            return web.json_response({"message": words}, status=404)
        self.images[name] = {"Id": "sha256:" + "b" * 64, "Config": {}}
        return await self._say(request, [{"status": "Pull complete", "id": "aa11", "progressDetail": {}}])

    async def _push(self, request: web.Request) -> web.StreamResponse:
        name = f"{request.match_info['name']}:{request.query['tag']}"
        self.pushes.append(name)
        if self.push_error:
            return await self._say(request, [{"error": self.push_error, "errorDetail": {"message": self.push_error}}])
        assert self.registry is not None
        digest = "sha256:" + self.images[name]["Id"].removeprefix("sha256:")[::-1]
        self.registry[name] = digest
        tag = request.query["tag"]
        pushed: Event = {"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": 1}}
        if self.containerd:
            pushed = {"status": f"{tag}: digest: {digest} size: 1"}
        return await self._say(request, [{"status": "Pushed", "id": "aa11", "progressDetail": {}}, pushed])

    async def _say(self, request: web.Request, events: Sequence[Event | asyncio.Event]) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        self.began.set()
        try:
            for event in events:
                if isinstance(event, asyncio.Event):
                    await event.wait()
                else:
                    await answer.write(json.dumps(event).encode() + b"\r\n")
        except asyncio.CancelledError:
            self.left.set()
            raise
        return answer
