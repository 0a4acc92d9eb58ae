"""What is forwarded to the node of an allocation: signals, logs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from aiohttp import web

from tests.support.fakes.nomad.acl import DENIED
from tests.support.fakes.nomad.clients import Clients
from tests.support.fakes.nomad.state import Refused, Shape, State
from tests.support.fakes.nomad.web import Ask, Routes, answer

FRAME: Final = 64 * 1024
"""Bytes of a log in one frame."""
LOOK: Final = 0.05
"""Seconds between looks at a log that is followed."""
HEARTBEAT: Final = 1.0


class ClientApi:
    """`/v1/client/…`."""

    def __init__(self, state: State, clients: Clients, routes: Routes) -> None:
        self._state, self._clients = state, clients
        routes.add("PUT POST", r"/v1/client/allocation/(?P<id>[^/]*)/signal", self.signal)
        routes.add("GET", r"/v1/client/fs/logs/(?P<id>[^/]*)", self.logs)

    def _alloc(self, ask: Ask) -> Shape:
        alloc = self._state.allocations.get(ask.parts["id"])
        if alloc is None:
            raise Refused(404, f'Unknown allocation "{ask.parts["id"]}"')
        return alloc

    async def signal(self, ask: Ask) -> web.StreamResponse:
        """`POST /v1/client/allocation/:id/signal {"Task", "Signal"}`; the answer has no index."""
        body = ask.json()
        alloc = self._alloc(ask)
        ask.must("alloc-lifecycle", alloc["Namespace"])
        await self._clients.signal(alloc["ID"], str(body.get("Task", "")), str(body.get("Signal", "")))
        return answer(ask, {"Index": 0})

    async def logs(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/client/fs/logs/:id`: a denial is a 500, but for tokens nobody has."""
        task, stream, origin = ask.query("task"), ask.query("type"), ask.query("origin") or "start"
        if not task:
            raise Refused(400, "must provide task name")
        if stream not in {"stdout", "stderr"}:
            raise Refused(400, "must provide log type (stdout/stderr)")
        if origin not in {"start", "end"}:
            raise Refused(400, "origin must be start or end")
        try:
            offset = int(ask.query("offset") or 0)
        except ValueError:
            raise Refused(400, "error parsing offset") from None
        alloc = self._alloc(ask)
        if not any(ask.rights.can(capability, alloc["Namespace"]) for capability in ("read-logs", "read-fs")):
            raise Refused(500, DENIED.text)
        files = self._clients.logs(alloc["ID"], task, stream)
        if not files[-1].exists():
            raise Refused(404, f'task "{task}" not started yet. No logs available')
        follow, plain = ask.flag("follow"), ask.flag("plain")
        response = web.StreamResponse(
            headers={"Content-Type": "text/plain" if plain else "application/json", "Vary": "Accept-Encoding"}
        )
        await response.prepare(ask.request)
        async for name, position, data in self._pieces(alloc["ID"], task, stream, origin, offset, follow=follow):
            if plain:
                if data:
                    await response.write(data)
            elif data:
                frame = {"Data": base64.b64encode(data).decode(), "File": f"alloc/logs/{name}", "Offset": position}
                await response.write(json.dumps(frame, separators=(",", ":")).encode())
            else:
                await response.write(b"{}")
        await response.write_eof()
        return response

    async def _pieces(
        self, alloc_id: str, task: str, stream: str, origin: str, offset: int, *, follow: bool
    ) -> AsyncIterator[tuple[str, int, bytes]]:
        """File, position after the data, data; no data: a heartbeat. Following never ends by itself."""
        files = self._clients.logs(alloc_id, task, stream)
        place = _place(files, origin, offset)
        quiet = 0.0
        while True:
            name, position = place
            path = files[0].parent / name
            data = _read(path, position)
            if data:
                place, quiet = (name, position + len(data)), 0.0
                yield name, position + len(data), data
                continue
            try:
                files = self._clients.logs(alloc_id, task, stream)
            except Refused:  # collected meanwhile
                return
            later = [file.name for file in files if _number(file) > _number(path)]
            if later:
                # It was written to its end meanwhile.
                if rest := _read(path, position):
                    place = name, position + len(rest)
                    yield name, position + len(rest), rest
                else:
                    place = later[0], 0
            elif not follow:
                return
            else:
                await asyncio.sleep(LOOK)
                quiet += LOOK
                if quiet >= HEARTBEAT:
                    quiet = 0.0
                    yield name, position, b""


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(FRAME)
    except FileNotFoundError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # newer ones took its place
        return 0


def _place(files: list[Path], origin: str, offset: int) -> tuple[str, int]:
    """Where reading begins: file, position. From the end, `offset` counts back."""
    sizes = [_size(file) for file in files]
    left = max(sum(sizes) - abs(offset), 0) if origin == "end" or offset < 0 else offset
    for file, size in zip(files, sizes, strict=True):
        if left <= size and not (left == size and file is not files[-1]):
            return file.name, left
        left -= size
    return files[-1].name, sizes[-1]
