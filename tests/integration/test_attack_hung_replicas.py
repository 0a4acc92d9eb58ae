"""Replicas that stop answering without ending: what they cost the requests that come after."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.leftovers import family, wait_gone
from tests.support.serve import Serve, serve

pytestmark = pytest.mark.timeout(120)

QUICK = {"MODALNOMAD_EMBEDDED__GRACE_PERIOD": "30", "MODALNOMAD_ROUTER__DRAIN_TIMEOUT": "2"}

PROGRAM = """
import asyncio, os, time
import modal

app = modal.App("hung")

async def stubborn():
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

async def site(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    path = scope["path"]
    if path.startswith("/begun"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await asyncio.sleep(0.2)
    if path.endswith("/hang"):
        time.sleep(600)
    if path.endswith("/stubborn"):
        await stubborn()
    if path == "/close":
        os.closerange(3, 256)
        time.sleep(600)
    if path == "/become-another":
        os.execv("/bin/sleep", ["sleep", "600"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

@app.function(timeout=2)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def many():
    return site

@app.function(timeout=2, max_containers=1)
@modal.asgi_app()
def one():
    return site

@app.function(timeout=2, max_containers=1)
@modal.fastapi_endpoint()
def sync(seconds: float = 0):
    time.sleep(seconds)
    return "ok"
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """With a grace period so long that nothing here may wait for it."""
    file = tmp_path_factory.mktemp("hung") / "hung.py"
    file.write_text(PROGRAM)
    with serve(file, env=QUICK) as running:
        yield running
        everybody = family(running.pid)
    assert running.exit_code == 0
    wait_gone(everybody)


@pytest.mark.parametrize(
    ("function", "path", "codes", "patience"),
    [
        ("many", "/hang", {"execution_timeout"}, 8),
        ("many", "/close", {"execution_timeout", "replica_gone"}, 8),
        ("many", "/become-another", {"replica_gone"}, 8),
        ("one", "/hang", {"execution_timeout"}, 15),
        ("one", "/stubborn", {"execution_timeout"}, 20),
        ("one", "/begun/hang", {"cut"}, 15),
        ("one", "/begun/stubborn", {"cut"}, 20),
        ("sync", "/?seconds=600", {"execution_timeout"}, 15),
    ],
)
def test_the_next_request_is_answered_by_another(
    platform: Serve, function: str, path: str, codes: set[str], patience: float
) -> None:
    with httpx.Client(base_url=platform.url(function), timeout=60) as client:
        assert "ok" in client.get("/").text
        begun = time.monotonic()
        try:
            outcome = client.get(path).headers["modalnomad-error"]
        except httpx.RemoteProtocolError:
            outcome = "cut"
        assert outcome in codes
        assert time.monotonic() - begun < 10, "the function's timeout is 2 s"
        begun = time.monotonic()
        assert "ok" in client.get("/").text
        assert time.monotonic() - begun < patience
        assert "ok" in client.get("/").text
