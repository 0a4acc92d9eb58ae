"""Where a server of the cluster sends us elsewhere: a token goes nowhere but to the address in the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import requests
from aiohttp import web

from modalnomad.hashicorp.http import HttpClient, Server, ServerRefused
from modalnomad.hashicorp.vault.client import CarefulSession
from modalnomad.kit.http_log import http_logger

TOKEN = "t0ken-of-nomad"


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, logger=http_logger)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_nomad_and_consul_are_not_followed_elsewhere(status: int) -> None:
    asked: list[str] = []

    async def stranger(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response([])

    async with serving(stranger) as elsewhere:

        async def moved(request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": f"{elsewhere}/v1/jobs"})

        async with serving(moved) as address:
            headers = {"X-Nomad-Token": TOKEN}
            client = HttpClient(Server("Nomad", address, "NOMAD_ADDR (nomad.address)", lambda: headers))
            try:
                with pytest.raises(ServerRefused, match=elsewhere) as refused:
                    await client.request("GET", "/v1/jobs")
            finally:
                await client.close()

    assert asked == []
    assert "NOMAD_ADDR" in (refused.value.hint or "")
    assert TOKEN not in f"{refused.value}{refused.value.hint}"


@pytest.mark.parametrize(
    ("before", "after", "followed"),
    [
        ("https://vault:8200/", "http://vault:8200/", False),
        ("https://vault:8200/", "https://active:8200/", True),
        ("http://vault:8200/", "http://active:8200/", True),
    ],
)
def test_vaults_standby_is_followed_but_not_out_of_tls(before: str, after: str, followed: bool) -> None:
    response = requests.Response()
    response.request = requests.Request("GET", before).prepare()
    response.url = before
    session = CarefulSession()
    session.trust_env = False
    asked = requests.Request("GET", after, headers={"X-Vault-Token": TOKEN}).prepare()
    if followed:
        session.rebuild_auth(asked, response)
        assert asked.headers["X-Vault-Token"] == TOKEN
        return
    with pytest.raises(requests.exceptions.ConnectionError, match="the token"):
        session.rebuild_auth(asked, response)
