"""Machines of a cluster that are lost, drained and full, jobs that people change, secrets that change: under a router
at work."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio

from tests.support.fakes.nomad.shapes import device_group
from tests.support.load import LATE, Load, program
from tests.support.shaken import Shaken, shaken, until_gone

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = """
@app.function(scaledown_window=600)
@modal.fastapi_endpoint()
def warm():
    return os.environ["MODALNOMAD_REPLICA"]

@app.function(scaledown_window=600)
@modal.fastapi_endpoint()
def stopped():
    return os.environ["MODALNOMAD_REPLICA"]

@app.function(scaledown_window=2)
@modal.fastapi_endpoint()
def purged():
    return "never"

@app.function(scaledown_window=600, secrets=[modal.Secret.from_name("deleted")])
@modal.fastapi_endpoint()
def orphaned():
    return os.environ["PASSWORD"]

@app.function(scaledown_window=2, secrets=[modal.Secret.from_name("db")])
@modal.fastapi_endpoint()
def asleep():
    return os.environ["PASSWORD"]

@app.function(scaledown_window=600, min_containers=2, max_containers=2, secrets=[modal.Secret.from_name("db")])
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def rotated():
    global VERSION
    VERSION = os.environ["PASSWORD"]
    return web
"""
GREEDY = """
import modal
app = modal.App("greedy")

@app.function(memory=100_000)
@modal.fastapi_endpoint()
def huge():
    return "never"

@app.function(gpu="H100")
@modal.fastapi_endpoint()
def gpu():
    return "never"
"""
SETTINGS = {"MODALNOMAD_VAULT__ROTATION": "0.3", "MODALNOMAD_NOMAD__GRACE_PERIOD": "5"}

NUMBERS = itertools.count(1)
"""Of requests that count."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shaken]:
    """One for all tests of this file."""
    folder = tmp_path_factory.mktemp("shaken")
    (folder / "seen").mkdir()
    text = (
        program(folder / "seen", "v1", name="shaken", window=600)
        + f"\nGATE = {str(folder / 'gate')!r}\n"
        + LATE
        + PROGRAM
    )
    secrets = {"db": {"PASSWORD": "one"}, "deleted": {"PASSWORD": "kept"}}
    async with shaken(folder, text, secrets=secrets, env=SETTINGS) as made:
        made.cluster.nomad.add_node("two")
        yield made


def seen(world: Shaken) -> Path:
    """Where endpoints that count note their requests."""
    return world.cluster.folder / "seen"


async def node_of(world: Shaken, function: str) -> str:
    """Id of the machine its only replica is on."""
    (alloc,) = await world.allocations(function)
    return str(alloc["NodeID"])


# --- machines ----------------------------------------------------------------------------------------------------


async def test_a_lost_replica_is_another_one_at_the_next_request(world: Shaken) -> None:
    _, name = await world.ask("warm")
    before = len(world.router.errors)
    (alloc,) = await world.allocations("warm")
    processes = await world.family("warm")

    await world.cluster.nomad.lose_allocation(alloc["ID"])

    await until_gone(processes)
    status, other = await world.ask("warm")
    assert (status, other == name) == (200, False)
    await world.router.told("died: its machine", "is lost", after=before)


async def test_a_lost_machine_is_forgotten_at_once(world: Shaken) -> None:
    """Nomad starts what ran there once more by itself; it is used like any other."""
    assert (await world.ask("warm"))[0] == 200
    lost = await node_of(world, "warm")
    processes = await world.family("warm")
    before = len(world.router.errors)

    await world.cluster.nomad.lose(lost)
    try:
        await until_gone(processes)
        assert (await world.ask("warm"))[0] == 200
        await world.router.told("died: its machine", "is lost", after=before)
        await world.calls.until(
            f"/v1/node/{lost}/allocations", lambda allocs: {alloc["ClientStatus"] for alloc in allocs} <= {"lost"}
        )
    finally:
        world.cluster.nomad.nodes.back(lost)


async def test_a_start_that_goes_with_its_machine_is_made_again_for_who_waits(world: Shaken) -> None:
    gate = world.cluster.folder / "gate"
    gate.touch()
    before = len(world.router.errors)
    asked = world.cluster.tasks.spawn(world.ask("held-web"), "asks meanwhile")
    await world.count("Held", 1)
    lost = await node_of(world, "Held")
    await world.cluster.nomad.lose(lost)
    try:
        await world.router.told("did not start: its machine", "is lost", after=before)
        gate.unlink()
        assert (await asked)[0] == 200
    finally:
        world.cluster.nomad.nodes.back(lost)


async def test_what_runs_on_a_drained_machine_is_replaced_before_it_goes(world: Shaken) -> None:
    assert (await world.ask("site", "/?0"))[0] == 200
    old = await node_of(world, "site")
    async with Load(lambda: world.target("site"), numbers=NUMBERS) as load:
        await load.until(20)
        await world.faults.node_drained(old)
        await world.calls.until(
            "/v1/node/" + old + "/allocations",
            lambda allocs: all(alloc["ClientStatus"] == "complete" for alloc in allocs if "site" in alloc["JobID"]),
        )
        await load.until(20)
    await world.faults.node_back(old)
    found = load.verdict(seen(world))
    assert not found.lost, str(found)
    assert not found.doubled, str(found)
    assert await node_of(world, "site") != old


async def test_a_place_that_comes_late_is_taken_and_given_back(world: Shaken) -> None:
    before = len(world.router.errors)
    async with world.faults.placed_late():
        status, code = await world.code("late")
        assert (status, code) == (503, "unplaceable")
        await world.router.told("shaken/late: there is no node for it", after=before)
        # It waits in Nomad, where nobody can take it back: nothing is added to it.
        assert (await world.code("late"))[0] == 503
        assert await world.children("late") == 1
    await world.count("late", 1)
    await world.asleep("late")
    assert await world.children("late") == 1
    assert (await world.ask("late"))[0] == 200


async def test_no_room_names_what_there_is_not_enough_of(world: Shaken) -> None:
    file = world.cluster.folder / "greedy.py"
    file.write_text(GREEDY)
    refused = await world.cluster.cli("deploy", str(file), code=1)
    assert "it asks for 100000 MiB of memory; the largest node has 8192" in refused.stderr
    assert "no node has the GPU it asks for (it asks for H100" in refused.stderr

    devices = [device_group("NVIDIA H100", ["GPU-0"], attributes={"memory": {"Int": 81559, "Unit": "MiB"}})]
    big = world.cluster.nomad.add_node("big", memory=200_000, devices=devices)
    await world.cluster.cli("deploy", str(file))
    await world.cluster.nomad.lose(big)

    before = len(world.router.errors)
    status, text = await world.router.get("greedy-huge.localhost")
    assert (status, json.loads(text)["code"]) == (503, "no_capacity")
    await world.router.told("greedy/huge: no node has enough left of what it asks for: memory", after=before)
    status, text = await world.router.get("greedy-gpu.localhost")
    assert (status, json.loads(text)["code"]) == (503, "unplaceable")
    await world.router.told("greedy/gpu: no node has the GPU it asks for", after=before)


# --- jobs --------------------------------------------------------------------------------------------------------


async def test_a_job_that_somebody_stopped_says_how_to_have_it_back(world: Shaken) -> None:
    name = await world.ask("stopped")
    before = len(world.router.errors)
    parent = await world.parent("stopped")
    where = "/v1/job/" + quote(parent["ID"], safe="")
    assert (await world.calls.call("DELETE", where, namespace=parent["Namespace"])).status == 200

    assert await world.ask("stopped") == name, "what runs, runs"
    await world.end("stopped")
    assert await world.code("stopped") == (503, "start_failed")
    await world.router.told("shaken/stopped: ", "was stopped in Nomad", after=before)
    await world.router.told("deploy the App again", after=before)

    await world.cluster.cli("deploy", str(world.cluster.folder / "shaken.py"))
    answer = await world.ask("stopped")
    assert answer[0] == 200, (answer, world.router.errors[before:])


async def test_a_job_that_somebody_purged_says_how_to_have_it_back(world: Shaken) -> None:
    before = len(world.router.errors)
    parent = await world.parent("purged")
    where = "/v1/job/" + quote(parent["ID"], safe="")
    reply = await world.calls.call("DELETE", where, namespace=parent["Namespace"], purge=True)
    assert reply.status == 200

    assert await world.code("purged") == (503, "start_failed")
    await world.router.told("shaken/purged: ", "Nomad has no job", after=before)
    await world.router.told("deploy the App again", after=before)


# --- secrets -----------------------------------------------------------------------------------------------------


async def test_a_secret_that_is_deleted_takes_nothing_from_who_runs(world: Shaken) -> None:
    assert await world.ask("orphaned") == (200, "kept")
    await world.cluster.cli("secret", "delete", "deleted", "--yes")
    await asyncio.sleep(1)  # three looks at it
    assert await world.ask("orphaned") == (200, "kept")

    before = len(world.router.errors)
    await world.end("orphaned")
    assert await world.code("orphaned") == (503, "start_failed")
    await world.router.told("shaken/orphaned: ", "deleted", after=before)


async def test_a_new_version_of_a_secret_reaches_who_runs_one_at_a_time(world: Shaken) -> None:
    await world.count("rotated", 2)
    before = await world.children("rotated")
    most: list[int] = []
    async with Load(lambda: world.target("rotated"), numbers=NUMBERS) as load:
        await load.until(20)
        await world.put_secret("db", {"PASSWORD": "two"}, "--force")

        def replaced(allocs: list[dict[str, str]]) -> bool:
            here = [alloc for alloc in allocs if alloc["JobID"].startswith("shaken.rotated.")]
            jobs = {alloc["JobID"] for alloc in here}
            alive = [alloc for alloc in here if alloc["ClientStatus"] in {"pending", "running"}]
            most.append(len(alive))
            return len(jobs) >= before + 2 and len(alive) == 2

        await world.calls.until("/v1/allocations", replaced, namespace="*")
        last = max(load.asked)
        await load.until(20)
    found = load.verdict(seen(world))
    assert not found.lost, str(found)
    assert not found.doubled, str(found)
    assert set(load.answered.values()) == {"one", "two"}
    assert {version for number, version in load.answered.items() if number > last} == {"two"}
    assert max(most) == 3
    assert min(most) >= 1  # one that nobody needs at the moment goes without a successor
    assert await world.children("asleep") == 0
    assert await world.ask("asleep") == (200, "two")
