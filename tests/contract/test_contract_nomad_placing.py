"""Where Nomad puts what it is given, what it says when it cannot, and the order in which it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.nomad_calls import PATIENCE
from tests.support.nomads import KINDS, MEMORY, TOO_MUCH, Nomad, opened, parent, plain, quoted

Events = asyncio.Queue[tuple[str, str, str, dict[str, Any]]]
"""Topic, type, status, payload."""


@pytest.fixture(params=KINDS)
async def nomad(request: pytest.FixtureRequest) -> AsyncIterator[Nomad]:
    """Without ACL, with one node."""
    async with opened(request.param) as found:
        yield found


@asynccontextmanager
async def events(nomad: Nomad, **params: Any) -> AsyncIterator[Events]:
    """The stream, open, from what happens now on."""
    index = (await nomad.calls.call("GET", "/v1/jobs")).index
    queue: Events = asyncio.Queue()

    async def follow(response: Any) -> None:
        async for line in response.content:
            for event in json.loads(line).get("Events", ()):
                found = event["Payload"][event["Topic"]]
                status = found.get("ClientStatus") or found.get("Status")
                if event["Index"] > index:
                    queue.put_nowait((event["Topic"], event["Type"], status, event))

    async with nomad.calls.open("/v1/event/stream", **({"namespace": "*", "topic": "*:*"} | params)) as response:
        assert await response.content.readline() == b"{}\n"
        assert response.headers["Connection"] == "close"
        assert "Content-Length" not in response.headers
        assert "Transfer-Encoding" not in response.headers
        reader = asyncio.ensure_future(follow(response))
        try:
            yield queue
        finally:
            reader.cancel()
            await asyncio.wait([reader])


ON_ITS_WAY = ("Allocation", "AllocationUpdated")
"""What a client says of one that has not ended, once in a second: not at all of one that has ended by then."""


async def taken(queue: Events, count: int) -> list[tuple[str, str, str]]:
    """The next ones, but for what is told at its own times: of nodes, whose health a real one tells, and of
    allocations that have not ended."""
    found: list[tuple[str, str, str]] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            topic, kind, status, _ = await queue.get()
            if topic != "Node" and not ((topic, kind) == ON_ITS_WAY and status in {"pending", "running"}):
                found.append((topic, kind, status))
    return found


async def outcome(nomad: Nomad, evaluation: str) -> dict[str, Any]:
    """Of an evaluation, once it is worked off."""
    found: dict[str, Any] = await nomad.calls.until(
        f"/v1/evaluation/{evaluation}", lambda each: each["Status"] in {"complete", "failed"}
    )
    return found


async def started(nomad: Nomad, job: str) -> dict[str, Any]:
    """A child's allocation that runs."""
    child = (await nomad.calls.put(f"/v1/job/{job}/dispatch", {"Meta": {"a": "60"}}))["DispatchedJobID"]
    found = await nomad.calls.until(
        f"/v1/job/{quoted(child)}/allocations", lambda all_of: all_of and all_of[0]["ClientStatus"] == "running"
    )
    return dict(found[0])


async def test_the_order_of_what_is_told_of_a_child(nomad: Nomad) -> None:
    await nomad.calls.put("/v1/jobs", parent("p", "sh -c 'exit 1'"))
    async with events(nomad) as queue:
        child = (await nomad.calls.put("/v1/job/p/dispatch", {}))["DispatchedJobID"]
        assert await taken(queue, 8) == [
            ("Job", "JobRegistered", "pending"),
            ("Evaluation", "JobRegistered", "pending"),
            ("Evaluation", "PlanResult", "pending"),
            ("Allocation", "PlanResult", "pending"),
            ("Job", "PlanResult", "running"),
            ("Evaluation", "EvaluationUpdated", "complete"),
            ("Allocation", "AllocationUpdated", "failed"),
            ("Job", "AllocationUpdated", "dead"),
        ]
    async with events(nomad, topic=f"Allocation:{child}", namespace="default", index=1) as replay:
        await nomad.calls.put("/v1/jobs", parent("p", "true"))
        second = (await nomad.calls.put("/v1/job/p/dispatch", {}))["DispatchedJobID"]
        assert second != child
        await nomad.calls.until(f"/v1/job/{quoted(second)}", lambda job: job["Status"] == "dead")
        assert replay.empty(), "only what was asked for"


async def test_an_event_of_a_placement_has_the_port_and_not_the_job(nomad: Nomad) -> None:
    await nomad.calls.put("/v1/jobs", parent("p"))
    async with events(nomad, topic="Allocation:*") as queue:
        answer = await nomad.calls.put("/v1/job/p/dispatch", {"Meta": {"a": "60"}, "Payload": "aGk="})
        async with asyncio.timeout(PATIENCE):
            _, kind, status, event = await queue.get()
    alloc = event["Payload"]["Allocation"]
    assert (kind, status, alloc["DesiredStatus"]) == ("PlanResult", "pending", "run")
    assert event["FilterKeys"] == [answer["DispatchedJobID"], ""]
    assert alloc["AllocatedResources"]["Shared"]["Ports"][0]["Label"] == "http"
    assert "Job" not in alloc
    assert alloc["EvalID"] == answer["EvalID"]


async def test_a_late_reader_gets_what_is_kept(nomad: Nomad) -> None:
    first = (await nomad.calls.put("/v1/jobs", parent("a")))["JobModifyIndex"]
    second = (await nomad.calls.put("/v1/jobs", parent("b")))["JobModifyIndex"]
    for params, names in (({}, ["a", "b"]), ({"index": first}, ["a", "b"]), ({"index": second}, ["b"])):
        async with nomad.calls.open("/v1/event/stream", topic="Job", **params) as response:
            await response.content.readline()
            for name in names:
                line = json.loads(await response.content.readline())
                assert [event["Key"] for event in line["Events"]] == [name]
    wrong = await nomad.calls.call("GET", "/v1/event/stream", index="x")
    text = 'Unable to parse index: strconv.Atoi: parsing "x": invalid syntax'
    assert (wrong.status, wrong.text) == (400, text)


UNFIT: tuple[tuple[Any, Any, Any], ...] = (
    ({"memory": TOO_MUCH}, None, {"memory": 1}),
    ({"cpu": 10_000_000}, None, {"cpu": 1}),
    ({"group": {"EphemeralDisk": {"SizeMB": TOO_MUCH}}}, None, {"disk": 1}),
    ({"devices": [{"Name": "nvidia/gpu", "Count": 1}]}, {"missing devices": 1}, None),
    ({"task": {"Driver": "podman", "Config": {"image": "x"}}}, {"missing drivers": 1}, None),
    ("${attr.kernel.name} = plan9", {"${attr.kernel.name} = plan9": 1}, None),
    ("${attr.kernel.name} != linux", {"${attr.kernel.name} != linux": 1}, None),
    ("${attr.kernel.name} regexp ^win", {"${attr.kernel.name} regexp ^win": 1}, None),
    ("${attr.nomad.version} semver >= 3", {"${attr.nomad.version} semver >= 3": 1}, None),
    ("${attr.nomad.version} version < 2.0.5", {"${attr.nomad.version} version < 2.0.5": 1}, None),
    ("${meta.gpu} is_set", {"${meta.gpu} is_set ": 1}, None),
    ("${attr.os.signals} set_contains SIGTERM,SIGNO", {"${attr.os.signals} set_contains SIGTERM,SIGNO": 1}, None),
    ("${node.unique.name} = other", {"${node.unique.name} = other": 1}, None),
)
"""What is asked; what it is filtered or exhausted by."""


async def test_why_there_is_no_place(nomad: Nomad) -> None:
    for asks, filtered, exhausted in UNFIT:
        if isinstance(asks, str):
            left, operand, *right = asks.split(" ", 2)
            asks = {"constraints": [{"LTarget": left, "Operand": operand, "RTarget": "".join(right)}]}
        done = await outcome(nomad, (await nomad.calls.put("/v1/jobs", plain("q", **asks)))["EvalID"])
        metrics = done["FailedTGAllocs"]["replica"]
        assert (metrics["ConstraintFiltered"], metrics["DimensionExhausted"]) == (filtered, exhausted)
        assert (metrics["NodesEvaluated"], metrics["NodesInPool"], metrics["NodesAvailable"]) == (1, 1, {"dc1": 1})
        assert (metrics["NodesFiltered"], metrics["NodesExhausted"]) == (int(bool(filtered)), int(bool(exhausted)))
        assert (done["Status"], done["QueuedAllocations"]) == ("complete", {"replica": 1})
        blocked = await nomad.calls.get(f"/v1/evaluation/{done['BlockedEval']}")
        assert (blocked["Status"], blocked["PreviousEval"]) == ("blocked", done["ID"])
        why = "created to place remaining allocations"
        assert (blocked["TriggeredBy"], blocked["StatusDescription"]) == ("queued-allocs", why)
        unique = "unique" in str(asks)
        assert blocked.get("EscapedComputedClass", False) is unique
        assert list((blocked.get("ClassEligibility") or {}).values()) == ([] if unique else [bool(exhausted)])
        assert (await nomad.calls.get("/v1/job/q"))["Status"] == "pending"
        await nomad.calls.call("DELETE", "/v1/job/q", purge=True)


async def test_who_waits_for_room_gets_it_when_there_is_some(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/jobs", parent("p", memory=7 * MEMORY))
    first = await started(nomad, "p")
    waiting = await calls.put("/v1/job/p/dispatch", {"Meta": {"a": "60"}})
    done = await outcome(nomad, waiting["EvalID"])
    assert done["FailedTGAllocs"]["replica"]["DimensionExhausted"] == {"memory": 1}
    path = f"/v1/job/{quoted(waiting['DispatchedJobID'])}"
    assert await calls.get(f"{path}/allocations") == []
    summary = await calls.get(f"{path}/summary")
    assert summary["Summary"]["replica"]["Queued"] == 1

    await calls.put(f"/v1/client/allocation/{first['ID']}/signal", {"Task": "app", "Signal": "SIGKILL"})
    (alloc,) = await calls.until(f"{path}/allocations", lambda all_of: all_of)
    assert alloc["EvalID"] == done["BlockedEval"]
    assert (await outcome(nomad, done["BlockedEval"]))["QueuedAllocations"] == {"replica": 0}


async def test_a_draining_node_keeps_batch_until_the_deadline_and_takes_nothing_new(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/jobs", parent("p"))
    first = await started(nomad, "p")
    hour = 3_600_000_000_000
    async with events(nomad, topic="Allocation:*") as queue:
        await calls.put(f"/v1/node/{nomad.node}/drain", drain(hour))
        node = await calls.get(f"/v1/node/{nomad.node}")
        assert (node["Drain"], node["SchedulingEligibility"]) == (True, "ineligible")
        assert node["DrainStrategy"]["Deadline"] == hour
        refused = await outcome(nomad, (await calls.put("/v1/job/p/dispatch", {"Meta": {"a": "60"}}))["EvalID"])
        metrics = refused["FailedTGAllocs"]["replica"]
        assert (metrics["NodesAvailable"], metrics["NodesInPool"], metrics["NodesEvaluated"]) == ({}, 0, 0)
        assert (await calls.get(f"/v1/allocation/{first['ID']}"))["DesiredStatus"] == "run"
        await calls.put(f"/v1/node/{nomad.node}/drain", drain(500_000_000))
        assert await taken(queue, 3) == [
            ("Allocation", "AllocationUpdateDesiredStatus", "running"),
            ("Allocation", "PlanResult", "running"),
            ("Allocation", "AllocationUpdated", "complete"),
        ]
    ended = await calls.get(f"/v1/allocation/{first['ID']}")
    assert (ended["DesiredStatus"], ended["DesiredDescription"]) == ("stop", "alloc is being migrated")
    transition = ended["DesiredTransition"]
    assert (transition["Migrate"], transition["MigrateDisablePlacement"]) == (True, True)
    node = await calls.until(f"/v1/node/{nomad.node}", lambda each: not each["Drain"])
    assert (node["SchedulingEligibility"], node["LastDrain"]["Status"]) == ("ineligible", "complete")
    job = quoted(first["JobID"])
    assert len(await calls.get(f"/v1/job/{job}/allocations")) == 1, "it is not replaced"

    await calls.put(f"/v1/node/{nomad.node}/eligibility", {"Eligibility": "eligible"})
    placed = await calls.until("/v1/allocations", lambda all_of: len(all_of) == 2)
    assert {alloc["EvalID"] for alloc in placed} == {first["EvalID"], refused["BlockedEval"]}


def drain(deadline: int) -> dict[str, Any]:
    """`deadline`: nanoseconds."""
    return {"DrainSpec": {"Deadline": deadline, "IgnoreSystemJobs": False}}


async def test_an_allocation_that_is_stopped_is_replaced(nomad: Nomad) -> None:
    await nomad.calls.put("/v1/jobs", parent("p"))
    first = await started(nomad, "p")
    await nomad.calls.put(f"/v1/allocation/{first['ID']}/stop")
    path = f"/v1/job/{quoted(first['JobID'])}/allocations"
    both = await nomad.calls.until(
        path, lambda all_of: {a["DesiredStatus"] for a in all_of} == {"run", "stop"} and len(all_of) == 2
    )
    assert {alloc["Name"] for alloc in both} == {first["Name"]}


async def test_a_job_for_each_node_runs_once(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/jobs", plain("each", "true", Type="sysbatch", group={"ReschedulePolicy": None}))
    (alloc,) = await calls.until(
        "/v1/job/each/allocations", lambda all_of: all_of and all_of[0]["ClientStatus"] == "complete"
    )
    assert alloc["NodeID"] == nomad.node
    assert (await calls.until("/v1/job/each", lambda job: job["Status"] == "dead"))["Type"] == "sysbatch"
    again = await calls.put("/v1/jobs", plain("each", "true", Type="sysbatch", group={"ReschedulePolicy": None}))
    await outcome(nomad, again["EvalID"])
    assert len(await calls.get("/v1/job/each/allocations")) == 1


async def test_a_lost_node_takes_its_allocations_with_it_and_others_are_placed(nomad: Nomad) -> None:
    """Whatever the job says of rescheduling: a batch job's allocation is placed anew, under the same child."""
    calls = nomad.calls
    await calls.put("/v1/jobs", parent("p", group={"PreventRescheduleOnLost": True}))
    first = await started(nomad, "p")
    if nomad.fake is not None:
        await nomad.fake.lose(nomad.node)
    elif nomad.agent is not None:
        await nomad.agent.lose()
    path = f"/v1/allocation/{first['ID']}"
    lost = await calls.until(path, lambda alloc: alloc["ClientStatus"] == "lost")
    assert (lost["DesiredStatus"], lost["DesiredDescription"]) == ("stop", "alloc is lost since its node is down")
    assert (await calls.get(f"/v1/node/{nomad.node}"))["Status"] == "down"
    job = quoted(first["JobID"])
    evaluations = await calls.until(
        f"/v1/job/{job}/evaluations", lambda all_of: any(each["Status"] == "blocked" for each in all_of)
    )
    assert {each["TriggeredBy"] for each in evaluations} == {"job-register", "node-update", "queued-allocs"}
    assert (await calls.get(f"/v1/job/{job}"))["Status"] == "pending"

    if nomad.fake is not None:
        nomad.fake.nodes.back(nomad.node)
    elif nomad.agent is not None:
        await nomad.agent.start()
    both = await calls.until(f"/v1/job/{job}/allocations", lambda all_of: len(all_of) == 2)
    assert {alloc["Name"] for alloc in both} == {first["Name"]}
