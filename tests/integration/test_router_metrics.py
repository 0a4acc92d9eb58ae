"""What a router shows of itself: each number moves when it should, and scrapes are what Prometheus reads."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client.openmetrics import parser

from modalnomad.model.manifest import Parameter
from modalnomad.model.replica import Failure
from modalnomad.router.metrics import ALL
from modalnomad.settings import ScalingSettings
from tests.support import raw
from tests.support.stub_replicas import make_match
from tests.support.watching import Watched, watched

BOTH_LOOPS = True

A = {"environment": "main", "app": "app", "function": "a"}
NOWHERE = {"environment": "", "app": "", "function": "", "endpoint": ""}


async def ask(watch: Watched, path: str = "/", host: str = "a.localhost") -> raw.Response:
    async with raw.client(watch.router.port) as client:
        return await client.request(raw.get(path, host))


async def test_every_documented_metric_is_shown_and_no_other(tmp_path: Path) -> None:
    described = {metric.name: metric for _, group in ALL for metric in group}

    async with watched(tmp_path, access_log=str(tmp_path / "log"), lost_lines=lambda: 7) as watch:
        await ask(watch)
        metrics = await watch.until(lambda m: m.get("modalnomad_requests_total", **A) == 1)
        text = await watch.page("/metrics")
        modern = await watch.page("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5")

    shown = {name: family for name, family in metrics.families.items() if not name.startswith("process_")}
    assert shown.keys() == {name.removesuffix("_total") for name in described}
    for metric in described.values():
        family = shown[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels), sample
    assert metrics.get("modalnomad_replica_log_lines_lost_total") == 7
    assert metrics.get("process_resident_memory_bytes") is not None
    assert text["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert modern["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    read = parser.text_string_to_metric_families(modern.body.decode())  # type: ignore[no-untyped-call]
    assert {family.name for family in read} >= shown.keys()


async def test_requests_are_counted_by_endpoint_and_outcome(tmp_path: Path) -> None:
    async with watched(tmp_path, rate=0.001, rate_burst=2000.0) as watch:
        assert (await ask(watch)).status == 200
        assert (await ask(watch)).status == 200
        assert (await ask(watch, host="b.localhost")).status == 429
        assert (await ask(watch, host="c.localhost")).status == 404
        async with raw.client(watch.router.port) as client:
            assert (await client.request(b"GET  / HTTP/1.1\r\n\r\n")).status == 400
        metrics = await watch.until(lambda m: m.get("modalnomad_requests_total", **NOWHERE) == 2)

    count = metrics.get
    assert count("modalnomad_requests_total", **A, endpoint="a", status="2xx") == 2
    assert count("modalnomad_request_duration_seconds_count", **A) == 2
    assert count("modalnomad_request_first_byte_seconds_count", **A) == 2
    assert count("modalnomad_request_wait_seconds_count", **A) == 2
    assert count("modalnomad_request_wait_seconds_bucket", **A, le="+Inf") == 2
    assert count("modalnomad_router_answers_total", endpoint="b", code="rate_limited") == 1
    assert count("modalnomad_request_wait_seconds_count", function="b") is None
    assert count("modalnomad_router_answers_total", **NOWHERE, code="unknown_endpoint") == 1
    assert count("modalnomad_router_answers_total", **NOWHERE, code="bad_request") == 1
    assert count("modalnomad_client_connections_accepted_total") == 5
    assert count("modalnomad_requests_in_flight") == 0
    assert count("modalnomad_routes") == 2


async def test_a_wake_is_timed_and_replicas_are_shown_by_state(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        watch.engine.on_start = lambda stub: None  # not ready yet
        request = asyncio.get_running_loop().create_task(ask(watch))
        metrics = await watch.until(lambda m: m.get("modalnomad_replicas", **A, state="starting") == 1)
        assert metrics.get("modalnomad_function_requests_waiting", **A) == 1
        assert metrics.get("modalnomad_requests_in_flight") == 1
        assert metrics.get("modalnomad_pools", **A, state="waking") == 1
        assert metrics.get("modalnomad_wake_seconds_count", **A) is None

        (stub,) = watch.engine.stubs.values()
        stub.is_ready.set()
        assert (await request).status == 200
        metrics = await watch.until(lambda m: m.get("modalnomad_requests_total", **A) == 1)
        assert metrics.get("modalnomad_wake_seconds_count", **A, outcome="ready") == 1
        assert metrics.get("modalnomad_replica_start_seconds_count", **A) == 1
        assert metrics.get("modalnomad_replica_starts_total", **A, reason="requests") == 1
        assert metrics.get("modalnomad_replicas", **A, state="ready") == 1
        assert metrics.get("modalnomad_pools", **A, state="warm") == 1

        await watch.engine.end(stub.key, Failure("replica_gone", "killed"))
        metrics = await watch.until(lambda m: m.get("modalnomad_replica_deaths_total", **A) == 1)
        assert metrics.get("modalnomad_replicas", **A, state="ready") == 0
        found = await watch.json("/debug")
        assert [decision["what"] for decision in found["decisions"]] == ["died", "start"]
        assert found["decisions"][0]["reason"] == "killed"


async def test_failed_starts_are_counted_by_code_until_the_breaker_opens(tmp_path: Path) -> None:
    scaling = ScalingSettings(breaker_failures=2, breaker_backoff=600.0, breaker_backoff_max=600.0)

    async with watched(tmp_path, scaling=scaling) as watch:
        watch.engine.failure = Failure("start_failed", "enter raised", "Traceback: hush-hush")
        for _ in range(3):
            assert (await ask(watch)).status == 503
        metrics = await watch.until(lambda m: m.get("modalnomad_requests_total", **A) == 3)
        debug = await watch.page("/debug")

    assert metrics.get("modalnomad_replica_start_failures_total", **A, code="start_failed") == 2
    assert metrics.get("modalnomad_wake_seconds_count", **A, outcome="start_failed") == 2
    assert metrics.get("modalnomad_breakers_open", **A) == 1
    assert metrics.get("modalnomad_router_answers_total", **A, code="start_failed") == 3
    assert b"enter raised" in debug.body
    assert b"hush-hush" not in debug.body


async def test_a_deploy_shows_and_what_was_counted_stays(tmp_path: Path) -> None:
    first, second = (make_match(tag="a", host="a.localhost", version=version) for version in (1, 2))

    async with watched(tmp_path, first) as watch:
        await ask(watch)
        before = await watch.until(lambda m: m.get("modalnomad_requests_total", **A) == 1)
        watch.discovery.serve(second)
        await watch.until(lambda m: m.get("modalnomad_route_table_changes_total") == 2)
        await ask(watch)
        after = await watch.until(lambda m: m.get("modalnomad_requests_total", **A) == 2)

    assert before.get("modalnomad_route_table_changes_total") == 1
    assert after.get("modalnomad_route_table_change_seconds_count") == 2
    assert (
        (after.get("modalnomad_route_table_changed_timestamp_seconds") or 0)
        >= (before.get("modalnomad_route_table_changed_timestamp_seconds") or 0)
        > 0
    )
    assert after.get("modalnomad_replica_starts_total", **A) == 2
    assert after.get("modalnomad_replica_drains_total", **A, reason="retired") == 1


async def test_parameter_values_are_neither_labels_nor_in_debug(tmp_path: Path) -> None:
    match = make_match(tag="a", host="a.localhost", parameters=(Parameter(name="who", type="str"),))

    async with watched(tmp_path, match) as watch:
        for who in ("xyzzy-one", "xyzzy-two"):
            assert (await ask(watch, f"/?who={who}")).status == 200
        metrics = await watch.until(lambda m: m.get("modalnomad_requests_total", **A) == 2)
        debug, text = await watch.page("/debug"), await watch.page("/metrics")

    assert metrics.get("modalnomad_pools", **A, state="warm") == 2
    assert b"xyzzy" not in debug.body + text.body


async def test_scrapes_under_load_read_well_and_lose_nothing(tmp_path: Path) -> None:
    match = make_match(tag="a", host="a.localhost", max_inputs=1000)

    async def client(watch: Watched) -> None:
        # The stubs close after each answer, and so is each connection to them a new one.
        for _ in range(20):
            assert (await ask(watch)).status == 200

    async with watched(tmp_path, match, rate=0) as watch:
        work = asyncio.gather(*(client(watch) for _ in range(10)))
        scrapes = 0
        seen = 0.0
        while not work.done():
            now = (await watch.metrics()).get("modalnomad_requests_total", **A) or 0.0
            assert now >= seen
            seen, scrapes = now, scrapes + 1
        await work
        metrics = await watch.until(lambda m: m.get("modalnomad_requests_total", **A) == 200)

    assert scrapes > 1
    assert metrics.get("modalnomad_request_duration_seconds_count", **A) == 200
