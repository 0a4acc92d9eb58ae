"""Programs of the guides, unchanged, deployed on a cluster and asked through a router; and what guides do not show:
streams and WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import pytest
import pytest_asyncio

from tests.support import guides
from tests.support.cluster import Cluster, Router, cluster
from tests.support.guides import ALL, Program

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.guides]

STREAMS = """
import modal
app = modal.App("streams")
image = modal.Image.debian_slim().pip_install("fastapi[standard]")

@app.function(image=image)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def web():
    import asyncio
    from fastapi import FastAPI, WebSocket
    from fastapi.responses import StreamingResponse
    api = FastAPI()
    asked = asyncio.Event()

    @api.get("/events")
    async def events():
        async def told():
            yield "data: one\\n\\n"
            await asked.wait()
            yield "data: two\\n\\n"
        return StreamingResponse(told(), media_type="text/event-stream")

    @api.get("/go")
    async def go():
        asked.set()

    @api.websocket("/socket")
    async def socket(found: WebSocket):
        await found.accept()
        while True:
            await found.send_text((await found.receive_text()).upper())

    return api
"""


SPREAD = [
    program for program in ALL if program.name.startswith("g2025") or program.name in {"g2024_asgi", "g2024_wsgi"}
]
"""The others of the older guide differ from these in the names of decorators only: `modalnomad serve` runs them all."""


@dataclass
class World:
    """A cluster with a router and the one secret both guides ask for."""

    cluster: Cluster
    router: Router

    async def deploy(self, file: Path) -> dict[str, str]:
        """Endpoint → host."""
        (made,) = (await self.cluster.cli("deploy", str(file), "--json")).records()
        return {endpoint["name"]: endpoint["host"] for endpoint in made["endpoints"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    async with cluster(tmp_path_factory.mktemp("programs")) as made:
        await made.cli("secret", "create", "my-web-auth-token", f"AUTH_TOKEN={guides.TOKEN}")
        async with made.router() as router:
            yield World(made, router)


@pytest.mark.parametrize("program", SPREAD, ids=[program.name for program in SPREAD])
async def test_answers_as_the_guide_says(world: World, program: Program, tmp_path: Path) -> None:
    hosts = await world.deploy(program.write(tmp_path))
    assert set(hosts) == {program.endpoint}

    def ask() -> None:
        headers = {"Host": hosts[program.endpoint]}
        with httpx.Client(base_url=world.router.url, headers=headers, trust_env=False, timeout=60) as client:
            for call in program.calls:
                call.made_with(client)

    await asyncio.to_thread(ask)


async def test_streams_and_sockets(world: World, tmp_path: Path) -> None:
    file = tmp_path / "streams.py"
    file.write_text(STREAMS)
    headers = {"Host": (await world.deploy(file))["web"]}
    async with aiohttp.ClientSession(world.router.url, headers=headers) as client:
        async with client.get("/events") as events:
            assert await events.content.readuntil(b"\n\n") == b"data: one\n\n", "told before the stream's end"
            async with client.get("/go") as answer:
                assert answer.status == 200
            assert await events.content.read() == b"data: two\n\n"
        async with client.ws_connect("/socket") as socket:
            for word in ("left", "right"):
                await socket.send_str(word)
                assert await socket.receive_str(timeout=60) == word.upper()
