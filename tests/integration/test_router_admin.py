"""The admin listener: who gets in, health, and readiness from the first table to the end."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from modalnomad.model.errors import BackendConflict, BackendRefused
from modalnomad.router.admin import Admin, names_this_machine
from tests.support import raw
from tests.support.watching import watched

BOTH_LOOPS = True
PAGES = ("/metrics", "/healthz", "/readyz", "/debug", "/debug/tasks")


async def test_nothing_of_it_is_reached_through_the_public_port(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        direct = await watch.router.direct_port("b.localhost")
        for page in PAGES:
            assert (await watch.page(page)).status == 200
            for port in (watch.router.port, direct):
                async with raw.client(port) as client:
                    answer = await client.request(raw.get(page, "a.localhost"))
                    assert (answer.status, answer.body) == (200, b"0.1")  # the replica's: its path, as any other
            async with raw.client(watch.router.port) as client:
                assert (await client.request(raw.get(page, "localhost"))).status == 404


@pytest.mark.parametrize(
    "host", ["rebound.example", "a.localhost", "localhost.example", "127.0.0.1.example", "[::1", "x"]
)
async def test_a_name_that_is_not_this_machines_is_refused(tmp_path: Path, host: str) -> None:
    async with watched(tmp_path) as watch:
        for page in (*PAGES, "/", "/nothing"):
            answer = await watch.page(page, host=host)
            assert (answer.status, b"modalnomad" in answer.body) in {(403, False), (400, False)}


@pytest.mark.parametrize(
    ("host", "listens_on", "allowed"),
    [
        ("localhost:8701", "127.0.0.1", True),
        ("LOCALHOST", "127.0.0.1", True),
        ("127.0.0.1:8701", "127.0.0.1", True),
        ("[::1]:8701", "::1", True),
        ("127.0.0.2", "127.0.0.2", True),
        ("", "127.0.0.1", False),
        ("evil.example", "localhost", False),
        ("evil.example:127.0.0.1", "127.0.0.1", False),
        ("metrics.example", "0.0.0.0", True),
        ("metrics.example", "192.0.2.1", True),
    ],
)
def test_which_names_are_this_machines(host: str, listens_on: str, allowed: bool) -> None:
    assert names_this_machine(host, listens_on) is allowed


async def test_only_reading_is_possible(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch, raw.client(watch.admin.port) as client:
        answer = await client.request(raw.post(b"", path="/metrics", host="localhost"))
        assert answer.status == 405
        page = await watch.page("/debug")
        assert page["cache-control"] == "no-store"
        assert page.get("access-control-allow-origin") is None


async def test_what_is_stale_is_told_and_does_not_end_readiness(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        assert (await watch.json("/debug"))["stale"] == {}
        since = time.time() - 30
        watch.router.stale = lambda: {"records": since}
        assert await watch.json("/readyz") == {
            "status": "ready",
            "reasons": [],
            "stale": {"records": {"since": since}},
        }
        assert (await watch.json("/debug"))["stale"] == {"records": {"since": since}}
        assert ((await watch.metrics()).get("modalnomad_stale_seconds", source="records") or 0.0) >= 30


async def test_readiness_ends_first_and_comes_back_no_more(tmp_path: Path) -> None:
    async with watched(tmp_path, drain_delay=30.0) as watch:
        assert await watch.json("/readyz") == {"status": "ready", "reasons": []}
        stopping = asyncio.get_running_loop().create_task(watch.router.drain())
        try:
            await asyncio.sleep(0)
            answer = await watch.page("/readyz")
            assert (answer.status, json.loads(answer.body)["reasons"]) == (503, ["it is stopping"])
            assert (await watch.metrics()).get("modalnomad_ready") == 0
            async with raw.client(watch.router.port) as client:  # still there for who has not noticed
                assert (await client.request(raw.get("/", "a.localhost"))).status == 200
            assert (await watch.page("/healthz")).status == 200
            assert not stopping.done()
        finally:
            stopping.cancel()
            await asyncio.wait([stopping])
        await watch.router.stop(wait=False)  # a second signal
        assert (await watch.page("/readyz")).status == 503
        assert watch.router.port == 0


async def test_without_a_delay_the_end_is_as_quick_as_ever(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        async with asyncio.timeout(raw.WAIT):
            assert await watch.router.drain()
        assert await watch.json("/readyz") == {"status": "not ready", "reasons": ["it is stopping"]}


async def test_a_loop_that_ended_makes_it_unhealthy(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        assert (await watch.page("/healthz")).status == 200
        (sweep,) = [task for task in asyncio.all_tasks() if task.get_name() == "router:sweep"]
        watch.router.router.gate.clock = lambda: 1 / 0
        await asyncio.wait([sweep], timeout=raw.WAIT)
        watch.router.router.gate.clock = lambda: 0.0
        answer = await watch.page("/healthz")
        assert answer.status == 503
        assert "ZeroDivisionError" in json.loads(answer.body)["reasons"][0]
        assert (await watch.page("/readyz")).status == 503


async def test_before_the_first_table_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        watch.router.feed.routes_index.set(-1)
        answer = await watch.page("/readyz")
        assert (answer.status, json.loads(answer.body)["reasons"]) == (503, ["no route table came yet"])
        assert (await watch.page("/healthz")).status == 200
        watch.router.feed.routes_index.set(1)


async def test_a_taken_port_and_a_foreign_address_are_told_apart(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        with pytest.raises(BackendConflict, match=r"is held by .*process") as taken:
            await Admin(watch.router, "127.0.0.1", watch.admin.port).start()
        assert "admin_port" in (taken.value.hint or "")
        with pytest.raises(BackendRefused, match=r"192\.0\.2\.1"):
            await Admin(watch.router, "192.0.2.1", 0).start()
        await watch.admin.close()
        await watch.admin.close()
        assert watch.admin.port == 0


async def test_tasks_are_shown_by_name(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        names = {task["name"] for task in (await watch.json("/debug/tasks"))["tasks"]}

    assert {"router:routes", "router:replicas", "router:scaler", "router:sweep"} <= names


async def test_an_endless_head_is_answered_and_leaves_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(tmp_path) as watch:
        answer = await watch.page("/healthz", "X-Long: " + "x" * 9000)
        assert answer.status == 400
        assert (await watch.page("/healthz")).status == 200
    assert "Traceback" not in caplog.text
    assert "Error handling request" not in caplog.text
