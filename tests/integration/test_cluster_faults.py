"""Servers of a cluster that fail under a router at work: what is warm goes on, what sleeps is told why it cannot wake
and wakes when it can."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modalnomad.kit.tasks import Tasks
from tests.support.cluster import Cluster, Router, cluster
from tests.support.fakes.faults import Faults
from tests.support.fakes.proxy import FaultyProxy
from tests.support.nomad_calls import Calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = """
import modal, os
app = modal.App("shaken")

@app.function(scaledown_window=600)
@modal.fastapi_endpoint()
def warm():
    return os.environ["MODALNOMAD_REPLICA"]

@app.function(scaledown_window=2)
@modal.fastapi_endpoint()
def sleeper():
    return os.environ["MODALNOMAD_REPLICA"]

@app.function(scaledown_window=2, secrets=[modal.Secret.from_name("db")])
@modal.fastapi_endpoint()
def secret():
    return os.environ["PASSWORD"]
"""
SOON = 0.5
"""Seconds in which a fault has been noticed."""


@dataclass
class World:
    """A router at work, and what can be done to its servers."""

    cluster: Cluster
    router: Router
    faults: Faults
    calls: Calls
    proxy: FaultyProxy

    async def ask(self, function: str) -> tuple[int, Any]:
        """Status and decoded answer."""
        status, text = await self.router.get(f"shaken-{function}.localhost")
        return status, json.loads(text)

    async def asleep(self, function: str) -> None:
        """Returns when none of its replicas lives."""
        await self.calls.until(
            "/v1/allocations",
            lambda allocs: (
                not any(
                    alloc["JobID"].startswith(f"shaken.{function}.") and alloc["ClientStatus"] in {"pending", "running"}
                    for alloc in allocs
                )
            ),
            namespace="*",
        )

    async def children(self, function: str) -> int:
        """How many were ever dispatched."""
        jobs = await self.calls.get("/v1/jobs", namespace="*")
        return sum(job["ID"].startswith(f"shaken.{function}.") and "/dispatch-" in job["ID"] for job in jobs)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: Any) -> AsyncIterator[World]:
    """One for all tests of this file."""
    folder: Path = tmp_path_factory.mktemp("shaken")
    async with cluster(folder) as made, FaultyProxy(made.nomad.address) as proxy, Calls(made.nomad.address) as calls:
        program, values = folder / "shaken.py", folder / "db.json"
        program.write_text(PROGRAM)
        values.write_text(json.dumps({"PASSWORD": "p"}))
        await made.cli("secret", "create", "db", "--from-json", str(values))
        await made.cli("deploy", str(program))
        made.env["NOMAD_ADDR"] = proxy.address
        faults = Faults(nomad=proxy, calls=calls, fake=made.nomad, consul=made.consul, vault=made.vault)
        async with made.router() as router:
            found = World(made, router, faults, calls, proxy)
            answer = await found.ask("warm")
            assert answer[0] == 200, answer
            yield found


async def test_what_is_warm_goes_on_without_any_server(world: World) -> None:
    name = await world.ask("warm")
    async with world.faults.nomad_gone(), world.faults.consul_gone(SOON):
        with world.faults.vault_hangs():
            for _ in range(20):
                assert await world.ask("warm") == name
    assert await world.ask("warm") == name


async def test_no_answer_of_consul_empties_what_is_served(world: World) -> None:
    past = world.cluster.consul.snapshot()
    name = await world.ask("warm")
    faults = world.faults
    for fault in (faults.consul_empty(), faults.consul_errors(), faults.consul_older_index(past, times=5)):
        with fault:
            await asyncio.sleep(SOON)
            assert await world.ask("warm") == name


async def test_a_lost_replica_is_another_one_at_the_next_request(world: World) -> None:
    _, name = await world.ask("warm")
    (alloc,) = [
        alloc
        for alloc in await world.calls.get("/v1/allocations", namespace="*")
        if alloc["JobID"].startswith("shaken.warm.") and alloc["ClientStatus"] == "running"
    ]
    await world.cluster.nomad.lose_allocation(alloc["ID"])
    status, other = await world.ask("warm")
    assert (status, other == name) == (200, False)


async def test_a_dispatch_that_took_effect_unanswered_starts_once(world: World) -> None:
    await world.asleep("sleeper")
    before = await world.children("sleeper")
    with world.faults.dispatch_fails_after_effect() as fault:
        answer = await world.ask("sleeper")
        assert answer[0] == 200, f"{answer} {world.router.errors[-12:]}"
    assert fault.met == 1
    assert await world.children("sleeper") == before + 1


async def test_a_wake_waits_for_a_nomad_that_comes_back(world: World) -> None:
    await world.asleep("sleeper")
    async with Tasks("test") as tasks:
        async with world.faults.nomad_gone(SOON):
            asked = tasks.spawn(world.ask("sleeper"), "asks meanwhile")
        early, _ = await asked
    assert early in {200, 503}
    assert (await world.ask("sleeper"))[0] == 200


async def test_a_place_that_comes_late_is_used(world: World) -> None:
    await world.asleep("sleeper")
    async with world.faults.placed_late():
        status, answer = await world.ask("sleeper")
        assert status == 503
        assert answer["code"] in {"no_capacity", "unplaceable"}
    await asyncio.sleep(SOON)
    assert (await world.ask("sleeper"))[0] == 200


async def test_a_secret_that_cannot_be_had_is_told(world: World) -> None:
    async with world.faults.vault_sealed():
        status, answer = await world.ask("secret")
        assert (status, answer["code"]) == (503, "start_failed")
    assert await world.ask("secret") == (200, "p")
