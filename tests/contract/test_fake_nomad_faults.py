"""What only the fake can do: several nodes, and all that goes wrong on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.support.fakes.nomad.server import FakeNomad
from tests.support.nomad_calls import PATIENCE, Calls
from tests.support.nomads import parent, plain, quoted


@pytest.fixture
async def nomad() -> AsyncIterator[FakeNomad]:
    """Without nodes."""
    async with FakeNomad() as found:
        yield found


@pytest.fixture
async def calls(nomad: FakeNomad) -> AsyncIterator[Calls]:
    """Of it."""
    async with Calls(nomad.address) as found:
        yield found


async def placed(calls: Calls, name: str, **asks: Any) -> str | dict[str, Any]:
    """Node of a job that is run, or the metrics of its failure."""
    answer = await calls.put("/v1/jobs", plain(name, **asks))
    path = f"/v1/evaluation/{answer['EvalID']}"
    done = await calls.until(path, lambda each: each["Status"] == "complete")
    if done.get("FailedTGAllocs"):
        return dict(done["FailedTGAllocs"]["replica"])
    (alloc,) = await calls.get("/v1/allocations", filter=f"JobID == {name}")
    return str(alloc["NodeName"])


async def test_pools_centres_and_classes(nomad: FakeNomad, calls: Calls) -> None:
    nomad.add_node("one", datacenter="dc1", node_class="small", meta={"rack": "r1"})
    nomad.add_node("two", datacenter="dc2", pool="gpu", meta={"rack": "r2"})
    assert await placed(calls, "a", NodePool="gpu") == "two"
    assert await placed(calls, "b", NodePool="all", Datacenters=["dc*"], Constraints=rack("r2")) == "two"
    nowhere = await placed(calls, "c", NodePool="gpu", Datacenters=["dc1"])
    assert isinstance(nowhere, dict)
    assert (nowhere["NodesInPool"], nowhere["NodePool"]) == (0, "gpu")


def rack(name: str) -> list[dict[str, str]]:
    """A constraint."""
    return [{"LTarget": "${meta.rack}", "Operand": "=", "RTarget": name}]


async def test_a_new_node_runs_what_is_to_run_on_each(nomad: FakeNomad, calls: Calls) -> None:
    nomad.add_node("one")
    await calls.put("/v1/jobs", plain("each", "true", Type="sysbatch"))
    nomad.add_node("two")
    done = await calls.until(
        "/v1/job/each/allocations", lambda all_of: [a["ClientStatus"] for a in all_of] == ["complete", "complete"]
    )
    assert {alloc["NodeName"] for alloc in done} == {"one", "two"}


async def test_a_dispatch_may_take_effect_and_fail_all_the_same(nomad: FakeNomad, calls: Calls) -> None:
    nomad.add_node()
    await calls.put("/v1/jobs", parent("p"))
    body = {"Meta": {"a": "60"}}
    nomad.faults.garble("POST .*/dispatch", text="rpc error: EOF")
    first = await calls.call("POST", "/v1/job/p/dispatch", body, idempotency_token="t")
    assert (first.status, first.text) == (500, "rpc error: EOF")
    nomad.faults.swallow("POST .*/dispatch")
    waits = asyncio.ensure_future(calls.call("POST", "/v1/job/p/dispatch", body, idempotency_token="u"))
    await nomad.until(lambda state: len(state.children_of(("default", "p"))) == 2)
    assert not (await asyncio.wait([waits], timeout=0.2))[0]
    waits.cancel()
    await asyncio.wait([waits])
    nomad.faults.cut("POST .*/dispatch")
    with pytest.raises(aiohttp.ClientError):
        await calls.call("POST", "/v1/job/p/dispatch", body, idempotency_token="v")
    children = [job["ID"] for job in await calls.get("/v1/jobs") if job["ParentID"]]
    assert len(children) == 3
    nomad.faults.refuse("POST .*/dispatch", times=2)
    for _ in range(2):
        assert (await calls.call("POST", "/v1/job/p/dispatch", body)).text == "No cluster leader"
    again = await calls.put("/v1/job/p/dispatch", body, idempotency_token="t")
    assert again["DispatchedJobID"] in children


async def test_it_goes_away_and_comes_back_with_all_it_knew(nomad: FakeNomad, calls: Calls) -> None:
    nomad.add_node()
    await calls.put("/v1/jobs", parent("p"))
    child = (await calls.put("/v1/job/p/dispatch", {"Meta": {"a": "60"}}))["DispatchedJobID"]
    path = f"/v1/job/{quoted(child)}/allocations"
    (alloc,) = await calls.until(path, lambda each: each and each[0]["ClientStatus"] == "running")
    waiting = asyncio.ensure_future(calls.call("GET", "/v1/jobs", index=10_000))
    async with calls.open("/v1/event/stream", namespace="*") as stream:
        await stream.content.readline()
        async with nomad.away():
            with pytest.raises(aiohttp.ClientError):
                await waiting
            with pytest.raises(aiohttp.ClientError):
                await calls.call("GET", "/v1/jobs")
            assert await stream.content.read() is not None, "a body without a length just ends"
    (same,) = await calls.get(path)
    assert (same["ID"], same["ClientStatus"]) == (alloc["ID"], "running")


async def test_a_stream_is_cut_or_says_nothing(nomad: FakeNomad, calls: Calls) -> None:
    async with calls.open("/v1/event/stream", topic="Job") as stream:
        await stream.content.readline()
        nomad.streams.cut()
        assert await stream.content.read() == b"", "a body without a length just ends"
    assert nomad.streams.count == 0
    nomad.streams.silent = True
    async with calls.open("/v1/event/stream", topic="Job") as stream:
        await calls.put("/v1/jobs", parent("p"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await stream.content.readline()
    nomad.streams.silent = False
    nomad.streams.heartbeat = 0.05
    async with calls.open("/v1/event/stream", topic="Node", index=10_000) as stream, asyncio.timeout(PATIENCE):
        assert [await stream.content.readline() for _ in range(3)] == [b"{}\n"] * 3


async def test_the_ring_forgets_what_is_old(nomad: FakeNomad, calls: Calls) -> None:
    for number in range(120):
        nomad.add_namespace(f"n{number}")
        await calls.put("/v1/jobs", parent("p", Meta={"n": str(number)}))
    async with calls.open("/v1/event/stream", topic="Job") as stream:
        await stream.content.readline()
        first = json.loads(await stream.content.readline())
    assert first["Events"][0]["Payload"]["Job"]["Meta"] == {"n": "20"}


async def test_a_child_gets_its_place_long_after_it_was_wanted(nomad: FakeNomad, calls: Calls) -> None:
    nomad.add_node(memory=100)
    await calls.put("/v1/jobs", parent("p", memory=90))
    nomad.scheduler.hold("^p/")
    child = (await calls.put("/v1/job/p/dispatch", {"Meta": {"a": "60"}}))["DispatchedJobID"]
    path = f"/v1/job/{quoted(child)}"
    await asyncio.sleep(0)
    assert await calls.get(f"{path}/allocations") == []
    (evaluation,) = await calls.get(f"{path}/evaluations")
    assert evaluation["Status"] == "pending"
    nomad.scheduler.release()
    assert len(await calls.until(f"{path}/allocations", lambda all_of: all_of)) == 1


async def test_one_allocation_is_lost(nomad: FakeNomad, calls: Calls) -> None:
    nomad.add_node()
    await calls.put("/v1/jobs", parent("p"))
    child = (await calls.put("/v1/job/p/dispatch", {"Meta": {"a": "60"}}))["DispatchedJobID"]
    path = f"/v1/job/{quoted(child)}"
    (alloc,) = await calls.until(f"{path}/allocations", lambda each: each and each[0]["ClientStatus"] == "running")
    await nomad.lose_allocation(alloc["ID"])
    assert (await calls.get(f"/v1/allocation/{alloc['ID']}"))["ClientStatus"] == "lost"
    assert (await calls.get(path))["Status"] == "dead"


async def test_too_many_connections(nomad: FakeNomad, calls: Calls) -> None:
    nomad.connections = 1
    async with calls.open("/v1/event/stream", topic="Job") as stream:
        await stream.content.readline()
        refused = await calls.call("GET", "/v1/jobs")
    assert (refused.status, refused.headers["Content-Length"]) == (429, "81")
    assert refused.text.startswith("Your IP is issuing too many concurrent connections")


async def test_one_token_at_the_same_time_may_start_several_as_on_a_real_server() -> None:
    async with FakeNomad(window=0.5) as nomad, Calls(nomad.address) as calls:
        await calls.put("/v1/jobs", parent("p"))
        both = await asyncio.gather(*(calls.put("/v1/job/p/dispatch", {}, idempotency_token="t") for _ in range(2)))
        assert len({answer["DispatchedJobID"] for answer in both}) == 2
        late = await calls.put("/v1/job/p/dispatch", {}, idempotency_token="t")
        assert (late["DispatchedJobID"] in {answer["DispatchedJobID"] for answer in both}, late["EvalID"]) == (True, "")
