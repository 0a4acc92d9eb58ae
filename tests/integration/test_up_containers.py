"""`modalnomad container list` and `stop`: replicas of a running `up`, by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from modalnomad.settings import Settings
from modalnomad.wiring.control import control_call
from tests.support.pace import turn
from tests.support.runner import wait_until
from tests.support.serve import run_command
from tests.support.up import Up, home_with, own_home, store, up

PROGRAM = """
import asyncio, modal, pathlib, uuid

ME = uuid.uuid4().hex
app = modal.App("shop")

@app.function(min_containers=1)
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def web():
    async def answer(scope, receive, send):
        assert scope["type"] == "http"
        if scope["path"] == "/slow":
            while not pathlib.Path(OVER).exists():
                await asyncio.sleep(0.01)
        else:
            await asyncio.sleep(float(scope["path"].strip("/") or 0))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": ME.encode()})
    return answer
"""


HANGS_ONCE = """
import modal, pathlib, time

app = modal.App("shop")

@app.cls()
class Web:
    @modal.enter()
    def begin(self):
        mark = pathlib.Path(BEGUN)
        if not mark.exists():
            mark.touch()
            time.sleep(600)

    @modal.asgi_app()
    def web(self):
        async def answer(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"up"})
        return answer
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What it serves answers /slow once there is the file `over`."""
    return home_with(tmp_path, PROGRAM.replace("OVER", repr(str(tmp_path / "over"))))


def containers(home: Path) -> list[dict[str, Any]]:
    return list(asyncio.run(control_call(Settings(home=home), "containers")))


def listed(home: Path, *options: str) -> list[dict[str, Any]]:
    shown = run_command("container", "list", "--json", *options, home=home)
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def ready(home: Path) -> list[dict[str, Any]]:
    return [container for container in containers(home) if container["state"] == "ready"]


def test_listed_with_what_runs_on_them(home: Path, tmp_path: Path) -> None:
    with up(home) as u:
        (container,) = wait_until(lambda: ready(home))
        assert container["app"] == "shop"
        assert container["function"] == "web"
        assert container["requests"] == 0
        slow = threading.Thread(target=httpx.get, args=(u.url("web") + "/slow",), kwargs={"timeout": 60})
        slow.start()
        wait_until(lambda: containers(home)[0]["requests"] == 1)
        shown = run_command("container", "list", "--app", "shop", home=home)
        assert container["id"] in shown.stdout
        assert "shop/web" in shown.stdout
        assert container["reason"] in shown.stdout
        assert listed(home, "--app", "other") == []
        assert [one["id"] for one in listed(home, "--all")] == [container["id"]]
        nothing = run_command("container", "list", "--env", "staging", home=home)
        assert nothing.stdout.strip() == "No containers run in environment staging."
        (tmp_path / "over").touch()
        slow.join()


def test_a_stop_finishes_what_runs_and_the_minimum_is_restored(home: Path, tmp_path: Path) -> None:
    with up(home) as u:
        (container,) = wait_until(lambda: ready(home))
        answered: list[httpx.Response] = []
        slow = threading.Thread(target=lambda: answered.append(httpx.get(u.url("web") + "/slow", timeout=60)))
        slow.start()
        wait_until(lambda: containers(home)[0]["requests"] == 1)
        stopped = run_command("container", "stop", container["id"][:8], home=home)
        assert stopped.returncode == 0, stopped.stderr
        assert container["id"] in stopped.stdout
        assert httpx.get(u.url("web"), timeout=30).status_code == 200
        (tmp_path / "over").touch()
        slow.join()
        assert answered[0].status_code == 200
        (other,) = wait_until(lambda: [c for c in ready(home) if c["id"] != container["id"]])
        wait_until(lambda: [c["id"] for c in containers(home)] == [other["id"]])


def test_killed_now(home: Path) -> None:
    with up(home) as u:
        (container,) = wait_until(lambda: ready(home))
        killed = run_command("container", "stop", container["id"], "--now", "--json", home=home)
        assert json.loads(killed.stdout) == {"id": container["id"], "killed": True}
        assert httpx.get(u.url("web"), timeout=30).status_code == 200
        assert container["id"] not in {c["id"] for c in containers(home)}


@pytest.mark.parametrize("now", [False, True])
def test_a_request_that_waits_for_one_that_is_stopped_gets_another(tmp_path: Path, now: bool) -> None:
    home = own_home(tmp_path)
    file = tmp_path / "slow.py"
    begun = tmp_path / "begun"
    file.write_text(HANGS_ONCE.replace("BEGUN", repr(str(begun))))
    store(home, file)
    with up(home) as u:
        answered: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answered.append(httpx.get(u.url("Web.web"), timeout=60)))
        asking.start()
        wait_until(begun.exists)
        (starting,) = containers(home)
        asyncio.run(control_call(Settings(home=home), "stop_container", id=starting["id"], now=now))
        asking.join()
    assert answered[0].status_code == 200, answered[0].text
    assert starting["state"] == "starting"


def test_unknown_ones_are_told(home: Path) -> None:
    with up(home):
        wait_until(lambda: ready(home))
        for id in ("", "ct-zzzz"):
            refused = run_command("container", "stop", id, home=home)
            assert refused.returncode == 1
            assert "no container" in refused.stderr
            assert "container list" in refused.stderr


def test_without_up_it_says_so(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    refused = run_command("container", "list", home=home)
    assert refused.returncode == 1
    assert f"no modalnomad up serves {home}" in refused.stderr
    assert "start it: modalnomad up" in refused.stderr


CLIENTS = 6


def test_stops_under_load_lose_nothing(home: Path) -> None:
    """Constant requests, one container after the other sent away: each request is answered, and by several."""
    over = threading.Event()
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def load(u: Up) -> None:
        with httpx.Client(timeout=30) as client:
            while not over.is_set():
                try:
                    answer = client.get(u.url("web") + f"/{turn(CLIENTS)}")
                    outcome = answer.text if answer.status_code == 200 else f"failed {answer.status_code} {answer.text}"
                except httpx.HTTPError as error:
                    outcome = f"failed {error!r}"
                with lock:
                    outcomes[outcome] += 1

    with up(home) as u:
        wait_until(lambda: ready(home))
        threads = [threading.Thread(target=load, args=(u,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: outcomes)
            for _ in range(3):
                serving, before = ready(home)[0]["id"], set(outcomes)
                asyncio.run(control_call(Settings(home=home), "stop_container", id=serving))
                wait_until(lambda gone=serving: gone not in {c["id"] for c in containers(home)} and ready(home))
                wait_until(lambda before=before: set(outcomes) - before, "another one answers")
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert not [outcome for outcome in outcomes if outcome.startswith("failed")], outcomes
    assert len(outcomes) >= 4, outcomes
