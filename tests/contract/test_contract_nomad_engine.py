"""What the engine relies on where it registers jobs, on the fake and on a real Nomad."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk import contract

from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.model.errors import BackendRefused
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Resources
from modalnomad.model.replica import PoolKey, ReplicaKey, ReplicaState
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.render.cluster import parent_id
from tests.support.cluster_servers import Place
from tests.support.engines import HELLO, Harness, program, within
from tests.support.nomad_calls import Calls
from tests.support.nomad_engine import nomad_engine

FAILED, STARTING = ReplicaState.FAILED, ReplicaState.STARTING


@pytest.fixture
async def h(place: Place, tmp_path: Path) -> AsyncIterator[Harness]:
    async with nomad_engine(place, tmp_path / "home") as found:
        yield found


@pytest.fixture
async def calls(place: Place) -> AsyncIterator[Calls]:
    async with Calls(place.nomad, place.token) as found:
        yield found


def engine_of(h: Harness) -> NomadEngine:
    assert isinstance(h.engine, NomadEngine)
    return h.engine


async def registered(calls: Calls, place: Place, version: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = await calls.get(f"/v1/job/{parent_id('app', 'site', version)}", namespace=place.namespace)
    return found


async def test_an_unchanged_job_is_not_registered_again(h: Harness, calls: Calls, place: Place) -> None:
    revision = await h.revision(HELLO)
    before = await registered(calls, place)

    await h.engine.prepare(revision)

    assert (await registered(calls, place))["JobModifyIndex"] == before["JobModifyIndex"]


async def test_a_job_that_was_stopped_by_hand_is_registered_again(
    h: Harness, calls: Calls, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    revision = await h.revision(HELLO)
    await calls.call("DELETE", f"/v1/job/{parent_id('app', 'site', 1)}", namespace=place.namespace)

    await h.engine.prepare(revision)

    assert not (await registered(calls, place))["Stop"]
    assert "was stopped" in caplog.text
    assert (await h.ask(await h.start(revision))).status == 200


async def test_a_job_that_was_changed_by_hand_is_put_right(
    h: Harness, calls: Calls, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    revision = await h.revision(HELLO)
    changed = await registered(calls, place)
    changed["TaskGroups"][0]["Tasks"][0]["Env"]["BY_HAND"] = "1"
    await calls.put("/v1/jobs", {"Job": changed}, namespace=place.namespace)

    await h.engine.prepare(revision)

    assert "was changed by hand" in caplog.text
    assert "BY_HAND" not in (await registered(calls, place))["TaskGroups"][0]["Tasks"][0]["Env"]


async def test_texts_for_people_alone_are_no_reason_to_register_again(h: Harness, calls: Calls, place: Place) -> None:
    revision = await h.revision(HELLO)
    changed = await registered(calls, place)
    changed["Meta"]["note"] = "by hand"
    changed["UI"] = {"Description": "mine", "Links": []}
    await calls.put("/v1/jobs", {"Job": changed}, namespace=place.namespace)
    before = await registered(calls, place)

    await h.engine.prepare(revision)

    assert (await registered(calls, place))["JobModifyIndex"] == before["JobModifyIndex"]


async def test_a_name_that_another_revision_took_is_left_to_it(h: Harness, calls: Calls, place: Place) -> None:
    first, second = await h.revision(HELLO), await h.revision(HELLO + "\n# other")

    assert (await registered(calls, place, 1))["Meta"]["revision"] == first.id
    assert (await registered(calls, place, 2))["Meta"]["revision"] == second.id


async def test_an_environment_is_made_ahead_or_the_failing_node_is_named(h: Harness) -> None:
    revision = await h.revision(HELLO)
    missing = await h.revision(HELLO, image=BuiltImage(digest=Digest("2" * 64), python="3.11"), prepare=False)
    told: list[tuple[int, int]] = []

    assert await within(engine_of(h).prewarm(revision, lambda *progress: told.append(progress))) == 1
    with pytest.raises(BackendRefused, match="on 1 of 1 nodes"):
        await within(engine_of(h).prewarm(missing))

    assert told[-1] == (1, 1)


async def test_asked_for_by_two_routers_at_the_same_time_one_replica_stays(
    h: Harness, calls: Calls, place: Place, tmp_path: Path
) -> None:
    revision = await h.revision(program("import os; return str(os.getpid()).encode()"))
    async with nomad_engine(place, tmp_path / "home") as other:
        keys = [key_of(revision, number) for number in range(4)]
        await asyncio.gather(*(each.engine.start(key, "both") for key in keys for each in (h, other)))
        for key in keys:
            assert (await h.ask(key)).text == (await other.ask(key)).text

        def one_each(allocations: list[dict[str, Any]]) -> bool:
            return sum(each["ClientStatus"] in {"pending", "running"} for each in allocations) == len(keys)

        await calls.until("/v1/allocations", one_each, namespace=place.namespace)
        for key in keys:
            assert (await h.replica(key)).state is (await other.replica(key)).state is STARTING
            assert (await h.ask(key)).status == 200


def key_of(revision: Revision, number: int, epoch: int = 1) -> ReplicaKey:
    return ReplicaKey(PoolKey(revision.id), number, epoch)


async def test_a_child_that_waits_for_room_starts_when_there_is_some(h: Harness, calls: Calls) -> None:
    (node,) = await calls.get("/v1/nodes", resources=True)
    half = int(node["NodeResources"]["Memory"]["MemoryMB"] * 0.6)
    revision = await h.revision(HELLO, resources=Resources(memory=(half, None)))
    first = await h.started(revision)
    waits = await h.start(revision, 1)

    failure = (await h.until(waits, FAILED)).failure
    await h.engine.start(key_of(revision, 1, 2), "again")
    refused = (await h.until(key_of(revision, 1, 2), FAILED)).failure
    verdict = await h.engine.explain(revision)
    await h.engine.kill(first)
    await h.until(waits, STARTING)

    assert failure is not None
    assert failure.code == "no_capacity"
    assert refused == failure
    assert verdict.answer == "not_now"
    assert (await h.ask(waits)).status == 200


async def test_replicas_are_taken_back_one_by_one_and_the_others_run_on(h: Harness, calls: Calls) -> None:
    """Also one that waits for room, which no signal reaches: it would start when there is some. The job can start
    others."""
    (node,) = await calls.get("/v1/nodes", resources=True)
    half = int(node["NodeResources"]["Memory"]["MemoryMB"] * 0.6)
    revision = await h.revision(HELLO, resources=Resources(memory=(half, None)))
    first = await h.started(revision)
    waits = await h.start(revision, 1)
    await h.until(waits, FAILED)

    await within(engine_of(h).take_back({waits, key_of(revision, 2)}), 20)
    await h.until(waits, ReplicaState.GONE)
    assert (await h.ask(first)).status == 200
    await within(engine_of(h).take_back({first}), 20)
    await h.until(first, FAILED, ReplicaState.GONE)

    assert (await h.ask(await h.start(revision, 1, 2), contract.READY_PATH)).status == 200
    assert [r.key for r in await h.snapshot() if r.state is STARTING] == [key_of(revision, 1, 2)]


async def test_what_not_even_an_empty_node_has_is_never(h: Harness) -> None:
    revision = await h.revision(HELLO, resources=Resources(memory=(100_000_000, None)), prepare=False)

    verdict = await h.engine.explain(revision)

    assert verdict.answer == "never"
    assert "asks for 100000000 MiB of memory; the largest node has" in verdict.reason


async def test_the_end_of_a_replica_has_its_own_time_in_the_logs(h: Harness) -> None:
    """Lines have none; they have the time of its start."""
    key = await h.start(await h.revision("import os\nprint('leaves', flush=True)\nos._exit(3)"))
    await h.until(key, FAILED)

    lines = [line async for line in h.engine.logs(key, follow=False)]

    assert [line.stream for line in lines] == ["system", "stdout", "system"]
    assert lines[0].time == lines[1].time < lines[2].time <= time.time()
    assert "ended with code 3" in lines[2].text
