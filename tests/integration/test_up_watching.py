"""A running `up` as a load balancer, Prometheus and whoever reads logs see it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendRefused
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.wiring.shared import SharedDiscovery
from tests.support.runner import LONG, wait_until
from tests.support.serve import run_command
from tests.support.up import home_with, own_home, up

PROGRAM = """
import modal

app = modal.App("shop")

@app.function()
@modal.asgi_app()
def web():
    async def answer(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
    return answer
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return home_with(tmp_path, PROGRAM)


def get(url: str) -> httpx.Response:
    """The first answer of an App waits for a replica that starts."""
    return httpx.get(url, timeout=LONG)


def metric(admin: str, name: str) -> float | None:
    families = text_string_to_metric_families(get(f"{admin}/metrics").text)
    values = [sample.value for family in families for sample in family.samples if sample.name == name]
    return sum(values) if values else None


def test_health_metrics_and_readiness_to_the_end(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    u = up(home, "--access-log", str(log), env={"MODALNOMAD_ROUTER__DRAIN_DELAY": "600"}).start()
    try:
        admin = u.wait_event("ready")["admin_url"]
        assert get(f"{admin}/healthz").status_code == 200
        assert get(f"{admin}/readyz").status_code == 200
        assert get(u.url("web") + "/a?b=c").text == "hello"
        wait_until(lambda: metric(admin, "modalnomad_requests_total") == 1)
        assert metric(admin, "modalnomad_wake_seconds_count") == 1
        assert metric(admin, "modalnomad_replica_log_lines_lost_total") == 0
        assert metric(admin, "modalnomad_loop_failures_total") == 0
        (route,) = get(f"{admin}/debug").json()["routes"]
        assert (route["app"], route["environment"]) == ("shop", "main")

        os.kill(u.pid, signal.SIGTERM)
        u.wait_event("stopping")
        wait_until(lambda: get(f"{admin}/readyz").status_code == 503)
        assert get(f"{admin}/healthz").status_code == 200
        for _ in range(3):
            assert get(u.url("web")).text == "hello"
        wait_until(lambda: metric(admin, "modalnomad_requests_total") == 4)
        assert metric(admin, "modalnomad_replica_starts_total") == 1, "nothing is taken away before the listeners close"

        os.kill(u.pid, signal.SIGTERM)  # no patience for the delay
        assert u.wait() == 130
    finally:
        u.stop()

    assert [json.loads(line)["path"] for line in log.read_text().splitlines()] == ["/a", "/", "/", "/"]


def test_lines_on_standard_output_are_events_like_others(home: Path) -> None:
    with up(home, "--access-log", "-") as u:
        assert get(u.url("web")).text == "hello"
        line = u.wait_event("request", path="/")
    assert (line["app"], line["status"], line["bytes_out"]) == ("shop", 200, 5)


def test_an_admin_port_that_is_taken_is_named_with_its_holder(home: Path, tmp_path: Path) -> None:
    with up(home) as u:
        port, pid = u.wait_event("ready")["admin_url"].rpartition(":")[2], u.pid
        other = tmp_path / "other"
        other.mkdir()
        refused = run_command("up", "--port", "0", "--admin-port", port, home=own_home(other))
    assert refused.returncode == 1
    assert "admin listener" in refused.stderr
    assert str(pid) in refused.stderr
    assert "router.admin_port" in refused.stderr


def test_none_is_opened_without_an_address(home: Path) -> None:
    with up(home, env={"MODALNOMAD_ROUTER__ADMIN_HOST": ""}) as u:
        assert u.wait_event("ready")["admin_url"] is None
        assert get(u.url("web")).text == "hello"


async def test_records_that_cannot_be_watched_are_counted() -> None:
    class Unreadable:
        async def watch(self) -> AsyncIterator[RouteSnapshot]:
            raise BackendRefused("the records cannot be read")
            yield RouteSnapshot()

    discovery = SharedDiscovery(cast(Discovery, Unreadable()), lambda snapshot: None)
    failed = asyncio.Event()
    discovery.on_failure = failed.set

    async with asyncio.timeout(LONG), Tasks("test") as tasks:
        tasks.spawn(discovery.run(), "records")
        await failed.wait()
