"""Replicas that stop answering without ending: what they cost the requests that come after."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests.support.leftovers import family, wait_gone
from tests.support.serve import serve

QUICK = {"MODALNOMAD_EMBEDDED__GRACE_PERIOD": "2", "MODALNOMAD_ROUTER__DRAIN_TIMEOUT": "2"}

PROGRAM = """
import os, time
import modal

app = modal.App("hung")

async def site(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/hang":
        time.sleep(600)
    if scope["path"] == "/close":
        os.closerange(3, 256)
        time.sleep(600)
    if scope["path"] == "/become-another":
        os.execv("/bin/sleep", ["sleep", "600"])
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"ok"}})

@app.function(timeout=2{options})
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def f():
    return site
"""


@pytest.mark.parametrize(
    ("path", "codes", "options", "patience"),
    [
        ("/hang", {"execution_timeout"}, "", 8),
        ("/hang", {"execution_timeout"}, ", max_containers=1", 25),
        ("/close", {"execution_timeout", "replica_gone"}, "", 8),
        ("/become-another", {"replica_gone"}, "", 8),
    ],
)
def test_the_next_request_is_answered_by_another(
    tmp_path: Path, path: str, codes: set[str], options: str, patience: float
) -> None:
    file = tmp_path / "hung.py"
    file.write_text(PROGRAM.format(options=options))
    with serve(file, env=QUICK) as s, httpx.Client(base_url=s.url(), timeout=40) as client:
        assert client.get("/").text == "ok"
        assert client.get(path).headers["modalnomad-error"] in codes
        begun = time.monotonic()
        assert client.get("/").text == "ok"
        assert time.monotonic() - begun < patience
        assert client.get("/").text == "ok"
        everybody = family(s.pid)
    assert s.exit_code == 0
    wait_gone(everybody)
