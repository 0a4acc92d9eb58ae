"""A secret that is deleted under an App that is served: what runs goes on, what starts says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.support.runner import wait_until
from tests.support.serve import run_command
from tests.support.up import own_home, store, up

PROGRAM = """
import os
import modal

app = modal.App("shop")

@app.function(secrets=[modal.Secret.from_name("db")], scaledown_window=300)
@modal.fastapi_endpoint()
def web():
    return {"value": os.environ["VALUE"], "pid": os.getpid()}
"""


@pytest.mark.timeout(240)  # six commands, one after the other, each of which imports all it has
def test_what_runs_goes_on_and_what_starts_says_what_is_missing(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    file = tmp_path / "shop.py"
    file.write_text(PROGRAM)
    assert run_command("secret", "create", "db", "VALUE=first", home=home).returncode == 0
    with up(home) as u:
        store(home, file)
        u.wait_event("endpoint", name="web")
        first = httpx.get(u.url("web"), timeout=60).json()
        assert first["value"] == "first"

        assert run_command("secret", "delete", "db", home=home).returncode == 1
        assert run_command("secret", "delete", "db", "--yes", home=home).returncode == 0
        assert httpx.get(u.url("web"), timeout=30).json() == first

        listed = run_command("container", "list", "--json", home=home)
        (container,) = [json.loads(line) for line in listed.stdout.splitlines()]
        assert run_command("container", "stop", container["id"], home=home).returncode == 0
        seen = len(u.events)
        answer = wait_until(
            lambda: got if (got := httpx.get(u.url("web"), timeout=60)).status_code != 200 else None, "it is stopped"
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "start_failed")
        failed = u.wait_event("replica", state="failed", after=seen)
        assert "there is no secret db in environment main" in json.dumps(failed)

        assert run_command("secret", "create", "db", "VALUE=second", home=home).returncode == 0
        again = wait_until(
            lambda: got if (got := httpx.get(u.url("web"), timeout=60)).status_code == 200 else None, "it starts"
        )
        assert again.json()["value"] == "second"
