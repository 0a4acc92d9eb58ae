"""`modalnomad up`: what is deployed in a home is served, followed, and found again after a restart."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest

from modalnomad.embedded.store import read_record, write_record
from modalnomad.model.replica import ReplicaState
from tests.support.leftovers import family, wait_gone
from tests.support.ports import held_port
from tests.support.runner import LONG, wait_until
from tests.support.serve import Serve, run_command, serve
from tests.support.up import build, own_home, publish, stop_app, store, up

PROGRAM = """
import modal

app = modal.App("NAME")

@app.function()
@modal.asgi_app()
def web():
    async def answer(scope, receive, send):
        assert scope["type"] == "http"
        body = ("WORD " + web.get_web_url()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
    return answer
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return own_home(tmp_path)


def program(folder: Path, word: str = "one", name: str = "shop") -> Path:
    file = folder / f"{name}.py"
    file.write_text(PROGRAM.replace("NAME", name).replace("WORD", word))
    return file


def words(u: Serve, name: str = "web") -> list[str]:
    answer = httpx.get(u.url(name), timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.text.split()


def test_deploys_rollbacks_and_stops_are_followed(tmp_path: Path, home: Path) -> None:
    with up(home) as u:
        assert [event["event"] for event in u.events] == ["ready"]
        assert u.events[0]["endpoints"] == 0
        first = store(home, program(tmp_path))
        endpoint = u.wait_event("endpoint", name="web", app="shop", environment="main", label="shop-web")
        assert u.wait_event("reloaded", app="shop")["version"] == 1
        assert endpoint["url"] == f"http://shop-web.localhost:{u.port}"
        assert words(u) == ["one", endpoint["url"]]

        seen = len(u.events)
        store(home, program(tmp_path, "two"))
        assert u.wait_event("reloaded", after=seen) == {
            "event": "reloaded",
            "app": "shop",
            "environment": "main",
            "functions": ["web"],
            "version": 2,
        }
        assert words(u)[0] == "two"
        gone = str(first.revisions[0].id)
        u.wait_event("replica", revision=gone, state=ReplicaState.GONE.value)

        stop_app(home, "shop")
        u.wait_event("endpoint_gone", app="shop", name="web")
        host = {"Host": f"shop-web.localhost:{u.port}"}
        assert httpx.get(f"http://127.0.0.1:{u.port}/", headers=host, timeout=LONG).status_code == 404
        with pytest.raises(httpx.ConnectError):
            httpx.get(endpoint["direct_url"], timeout=LONG)
    assert u.exit_code == 0
    assert not u.stderr_lines


def test_every_environment_is_served_and_knows_its_urls(tmp_path: Path, home: Path) -> None:
    file = program(tmp_path)
    store(home, file)
    store(home, file, environment="staging")
    with up(home) as u:
        by_environment = {event["environment"]: event for event in u.events if event["event"] == "endpoint"}
        assert by_environment["main"]["url"] == f"http://shop-web.localhost:{u.port}"
        assert by_environment["staging"]["url"] == f"http://staging--shop-web.localhost:{u.port}"
        for event in by_environment.values():
            answer = httpx.get(event["direct_url"], timeout=30)
            assert answer.text == f"one {event['url']}"


@pytest.mark.timeout(240)  # six commands, one after the other, each of which imports all it has
def test_one_environment_alone(tmp_path: Path, home: Path) -> None:
    file = program(tmp_path)
    store(home, file)
    store(home, file, environment="staging")
    with up(home, "--env", "staging") as u:
        assert [event["environment"] for event in u.events if event["event"] == "endpoint"] == ["staging"]
        assert words(u)[0] == "one"
        main = {"Host": f"shop-web.localhost:{u.port}"}
        assert httpx.get(f"http://127.0.0.1:{u.port}/", headers=main, timeout=LONG).status_code == 404
        refused = run_command("deploy", "--env", "main", str(program(tmp_path, "two")), home=home)
        assert refused.returncode == 1
        assert "serves the environment staging only" in refused.stderr
        unserved = run_command("deploy", "--env", "main", "--tag", "t", str(program(tmp_path, "one")), home=home)
        assert unserved.returncode == 1
        assert "serves the environment staging only" in unserved.stderr
        assert "App shop is stored as v2" in unserved.stderr, "it needs nothing of the one that runs"
        assert run_command("app", "stop", "shop", "--env", "main", "--yes", home=home).returncode == 0
        assert words(u)[0] == "one"  # the commands took their time: a replica is there, if it is another one
        listed = run_command("container", "list", "--env", "staging", "--json", home=home)
        id = json.loads(listed.stdout)["id"]
        assert run_command("container", "stop", id, "--env", "main", home=home).returncode == 1
        assert run_command("container", "stop", id, "--env", "staging", home=home).returncode == 0


def test_a_second_one_is_refused_with_the_first_ones_pid(tmp_path: Path, home: Path) -> None:
    with up(home) as u:
        second = run_command("up", "--port", "0", home=home)
        assert second.returncode == 1
        assert f"process {u.pid} " in second.stderr
        assert str(home) in second.stderr
        with serve(program(tmp_path, "served"), home=home) as s:
            assert words(s, "web")[0] == "served", "a serve of the same home is none of its business"
    with up(home):
        pass


def test_urls_and_direct_ports_are_the_same_after_a_restart(tmp_path: Path, home: Path) -> None:
    store(home, program(tmp_path))
    store(home, program(tmp_path, name="other"), environment="staging")
    with held_port() as port:
        with up(home, "--port", str(port)) as u:
            before = [event for event in u.events if event["event"] == "endpoint"]
        assert len({event["direct_url"] for event in before}) == 2
        with up(home, "--port", str(port)) as u:
            assert [event for event in u.events if event["event"] == "endpoint"] == before


def test_a_direct_port_that_is_taken_meanwhile_is_replaced_and_said(tmp_path: Path, home: Path) -> None:
    store(home, program(tmp_path))
    with up(home) as u:
        before = u.url("web")
    with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2]))), up(home) as u:
        after = u.url("web")
        assert after != before
        assert words(u)[0] == "one"
        assert any("direct port of shop-web.localhost" in line for line in u.stderr_lines), u.output()
    with up(home) as u:
        assert u.url("web") == after


@pytest.mark.parametrize("damage", ["not json", '{"kind": "ports", "version": 1, "content": {"ports": {"a": "b"}}}'])
def test_damaged_memory_of_ports_stops_nothing(tmp_path: Path, home: Path, damage: str) -> None:
    store(home, program(tmp_path))
    (home / "ports.json").write_text(damage)
    with up(home) as u:
        assert words(u)[0] == "one"
    kept = read_record(home / "ports.json", "ports", 1)
    assert kept is not None
    assert list(kept["ports"]) == ["shop-web.localhost"]


def test_a_taken_port_is_told_with_the_ways_out(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run_command("up", "--port", port, "--admin-port", "0", home=home)
    assert refused.returncode == 1
    assert f"127.0.0.1:{port}" in refused.stderr
    assert "another port" in refused.stderr


def test_killed_it_leaves_nothing_and_the_next_one_works_at_once(tmp_path: Path, home: Path) -> None:
    store(home, program(tmp_path))
    with held_port() as port:
        u = up(home, "--port", str(port)).start()
        try:
            words(u)
            processes = family(u.pid)
            assert len(processes) > 2
        finally:
            u.kill()
        with up(home, "--port", str(port)) as u:
            assert words(u)[0] == "one"
    wait_gone(processes)
    wait_until(lambda: not list((home / "run").iterdir()))
    assert not list((home / "bundles").glob("*"))


def test_what_cannot_be_prepared_answers_503_until_it_can(tmp_path: Path, home: Path) -> None:
    broken = store(home, program(tmp_path))
    store(home, program(tmp_path, "fine", name="fine"))
    archive = home / "artifacts" / broken.revisions[0].bundle
    content = archive.read_bytes()
    archive.unlink()
    with up(home) as u:
        wait_until(lambda: any("cannot be started now" in line for line in u.stderr_lines))
        urls = {event["app"]: event["direct_url"] for event in u.events if event["event"] == "endpoint"}
        refused = httpx.get(urls["shop"], timeout=30)
        assert refused.status_code == 503
        assert refused.json()["code"] == "start_failed"
        assert archive.name not in refused.text, "why it is, is nobody's business outside"
        assert any(archive.name in line for line in u.stderr_lines)
        assert httpx.get(urls["fine"], timeout=30).status_code == 200
        archive.write_bytes(content)
        deadline = time.monotonic() + 30
        while (answer := httpx.get(urls["shop"], timeout=30)).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.1)  # its breaker lets one trial in at a time
        assert answer.status_code == 200, answer.text


def test_a_damaged_record_takes_no_other_app_down(tmp_path: Path, home: Path) -> None:
    store(home, program(tmp_path))
    store(home, program(tmp_path, "fine", name="fine"))
    (home / "discovery" / "apps" / "main" / "shop.json").write_text("{")
    with up(home) as u:
        assert [event["app"] for event in u.events if event["event"] == "endpoint"] == ["fine"]
        assert words(u)[0] == "fine"
        store_file = home / "discovery" / "apps" / "main" / "fine.json"
        good = store_file.read_bytes()
        store_file.write_text("{")
        wait_until(lambda: any("fine.json" in line for line in u.stderr_lines))
        assert words(u)[0] == "fine", "what was readable last is served on"
        store_file.write_bytes(good)


def test_a_hundred_apps_are_served_at_once(tmp_path: Path, home: Path) -> None:
    """They are prepared in the background, a few at a time; a request does not wait for its turn."""
    candidate = build(home, program(tmp_path))
    record = publish(home, candidate)
    path = home / "discovery" / "apps" / "main" / "shop.json"
    text = json.dumps(json.loads(path.read_text())["content"])
    for number in range(100):
        name = f"app{number}"
        content = text.replace('"shop"', f'"{name}"').replace("shop-web", f"{name}-web")
        content = content.replace(record.revisions[0].id, f"{number:032x}")
        write_record(path.with_name(f"{name}.json"), "app", 1, json.loads(content))
    began = time.monotonic()
    with up(home) as u:
        took = time.monotonic() - began
        endpoints = {event["app"]: event for event in u.events if event["event"] == "endpoint"}
        assert len(endpoints) == 101
        assert httpx.get(endpoints["app99"]["direct_url"], timeout=30).status_code == 200
        assert took < 45, "it starts as quickly as with one App"
        process = psutil.Process(u.pid)
        wait_until(lambda: process.cpu_percent(1.0) < 5, within=30)
    assert u.exit_code == 0
