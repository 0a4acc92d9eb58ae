"""Nomad's API as the platform uses it: what is asserted here holds of the fake and of a real agent."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.support.nomad_calls import PATIENCE, Reply
from tests.support.nomads import KINDS, TOO_MUCH, Nomad, opened, parent, plain, quoted

UNKNOWN = "00000000-0000-0000-0000-000000000000"
Opening = Callable[[], Awaitable[Nomad]]


@pytest.fixture(params=KINDS)
async def nomad(request: pytest.FixtureRequest) -> AsyncIterator[Nomad]:
    """Without ACL, with one node."""
    async with opened(request.param) as found:
        yield found


async def dispatch(nomad: Nomad, job: str, seconds: str = "60", **params: Any) -> dict[str, Any]:
    """The answer to a dispatch that must succeed."""
    found: dict[str, Any] = await nomad.calls.put(f"/v1/job/{job}/dispatch", {"Meta": {"a": seconds}}, **params)
    return found


async def only_allocation(nomad: Nomad, child: str, status: str) -> dict[str, Any]:
    """The child's, once its client reports this status."""
    found = await nomad.calls.until(
        f"/v1/job/{quoted(child)}/allocations", lambda all_of: all_of and all_of[0]["ClientStatus"] == status
    )
    return dict(found[0])


def refused(reply: Reply) -> tuple[int, str]:
    """Status and text of an error: bare text, no index after a write."""
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    return reply.status, reply.text


async def test_a_parent_is_registered_once_for_each_specification(nomad: Nomad) -> None:
    ask = nomad.calls.call
    first = (await ask("POST", "/v1/jobs", parent("p"))).json
    same = (await ask("PUT", "/v1/jobs", parent("p"))).json
    other = (await ask("PUT", "/v1/job/p", parent("p", Meta={"revision": "r2"}))).json

    assert first["EvalID"] == "", "nothing is to be placed"
    assert same["JobModifyIndex"] == first["JobModifyIndex"] < other["JobModifyIndex"]
    job = await nomad.calls.get("/v1/job/p")
    assert (job["Version"], job["Status"], job["Meta"]) == (1, "running", {"revision": "r2"})
    versions = await nomad.calls.get("/v1/job/p/versions")
    assert [version["Version"] for version in versions["Versions"]] == [1, 0]
    group = job["TaskGroups"][0]
    assert group["Constraints"] == [{"LTarget": "${attr.os.signals}", "Operand": "set_contains", "RTarget": "SIGTERM"}]
    assert group["EphemeralDisk"]["SizeMB"] == 300
    assert group["Tasks"][0]["KillTimeout"] == 5_000_000_000


async def test_what_register_refuses_in_a_body(nomad: Nomad) -> None:
    field = "json: cannot unmarshal {} into Go struct field Job.Job.{}"
    for body, status, text in (
        ({}, 400, "Job must be specified"),
        (b"", 400, "Request body is empty"),
        (b"{", 400, "unexpected EOF"),
        ({"Job": {"Name": "x"}}, 400, "Job ID hasn't been provided"),
        (parent("a b"), 500, "1 error occurred:\n\t* Job ID contains a space\n\n"),
        (parent("x", Priority="x"), 400, field.format("string", "Priority of type int")),
        (parent("x", Meta={"a": 1}), 400, field.format("number", "Meta of type string")),
        (parent("x", Namespace="no"), 500, '1 error occurred:\n\t* job "x" is in nonexistent namespace "no"\n\n'),
        (parent("x", Region="zz"), 500, "No path to region"),
        (
            parent("x", task={"Driver": ""}),
            500,
            "1 error occurred:\n\t* Task group replica validation failed: 1 error occurred:\n\t* Task app validation "
            "failed: 1 error occurred:\n\t* Missing task driver\n\n\n\n\n\n",
        ),
        (
            parent("x") | {"EnforceIndex": True, "JobModifyIndex": 9},
            500,
            "Enforcing job modify index 9: job does not exist",
        ),
    ):
        assert refused(await nomad.calls.call("POST", "/v1/jobs", body)) == (status, text)
    assert await nomad.calls.get("/v1/jobs") == []


async def test_register_refuses_and_changes_nothing(nomad: Nomad) -> None:
    index = (await nomad.calls.put("/v1/jobs", parent("p")))["JobModifyIndex"]
    await nomad.calls.put("/v1/jobs", plain("q", "true"))
    enforced = {"EnforceIndex": True, "JobModifyIndex": 0}
    for body, text in (
        (parent("p") | enforced, "Enforcing job modify index 0: job already exists"),
        (
            parent("p") | enforced | {"JobModifyIndex": index + 5},
            f"Enforcing job modify index {index + 5}: job exists with conflicting job modify index: {index}",
        ),
        (
            parent("p", Payload="aGk="),
            "1 error occurred:\n\t* job can't be submitted with a payload, only dispatched\n\n",
        ),
        (parent("q"), "cannot update non-parameterized job to being parameterized"),
        (plain("p"), "cannot update parameterized job to being non-parameterized"),
        (plain("q", Type="service"), 'cannot update job from type "batch" to "service"'),
        (parent("x", NodePool="no"), '1 error occurred:\n\t* job "x" is in nonexistent node pool "no"\n\n'),
    ):
        assert refused(await nomad.calls.call("POST", "/v1/jobs", body)) == (500, text)
    assert (await nomad.calls.get("/v1/job/p"))["JobModifyIndex"] == index
    kept = await nomad.calls.put("/v1/jobs", parent("p", Meta={}) | enforced | {"JobModifyIndex": index})
    assert kept["JobModifyIndex"] > index


async def test_a_token_that_was_answered_dispatches_nothing_more(nomad: Nomad) -> None:
    """One after the other: of two at the same time a real server may start both."""
    await nomad.calls.put("/v1/jobs", parent("p"))
    first = await dispatch(nomad, "p", idempotency_token="t.1.1")
    child = first["DispatchedJobID"]
    answers = await asyncio.gather(*(dispatch(nomad, "p", idempotency_token="t.1.1") for _ in range(20)))

    assert first["EvalID"]
    assert {(answer["DispatchedJobID"], answer["EvalID"]) for answer in answers} == {(child, "")}
    alloc = await only_allocation(nomad, child, "running")
    await nomad.calls.put(f"/v1/client/allocation/{alloc['ID']}/signal", {"Task": "app", "Signal": "SIGKILL"})
    await only_allocation(nomad, child, "failed")
    again = await dispatch(nomad, "p", idempotency_token="t.1.1")
    assert (again["DispatchedJobID"], again["EvalID"]) == (child, ""), "also when it is dead"


async def test_what_dispatch_refuses(nomad: Nomad) -> None:
    await nomad.calls.put("/v1/jobs", parent("p"))
    await nomad.calls.put("/v1/jobs", plain("q", "true"))
    await nomad.calls.put("/v1/jobs", parent("s"))
    await nomad.calls.call("DELETE", "/v1/job/s")
    big = base64.b64encode(b"a" * 16385).decode()
    for job, body, status, text in (
        ("zz", {}, 500, "parameterized job not found"),
        ("q", {}, 500, 'Specified job "q" is not a parameterized job'),
        ("s", {}, 500, 'Specified job "s" is stopped'),
        ("p", {"Meta": {"zz": "1"}}, 500, "Dispatch request included unpermitted metadata keys: [zz]"),
        ("p", {"Payload": "x"}, 400, "illegal base64 data at input byte 0"),
        ("p", {"Payload": big}, 500, "Payload exceeds maximum size; 16385 > 16384"),
        ("p", {"JobID": "q"}, 400, "Job ID does not match"),
        ("p", b"", 400, "Request body is empty"),
        ("p", b"{", 400, "unexpected EOF"),
    ):
        reply = await nomad.calls.call("POST", f"/v1/job/{job}/dispatch", body)
        assert refused(reply) == (status, text)


async def test_a_child_lives_and_ends_and_goes(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/jobs", parent("p"))
    body = {"Meta": {"a": "60"}, "Payload": "aGk=", "IdPrefixTemplate": "r1-001-queue"}
    answer = await calls.put("/v1/job/p/dispatch", body)
    child = answer["DispatchedJobID"]
    assert child.startswith("p/dispatch-r1-001-queue-")
    path = f"/v1/job/{quoted(child)}"
    alloc = await only_allocation(nomad, child, "running")
    job = await calls.get(path)
    assert job["Meta"] == {"revision": "r1", "a": "60"}
    assert (job["ParentID"], job["Dispatched"], job["Payload"], job["Version"]) == ("p", True, "aGk=", 0)
    whole = await calls.get(f"/v1/allocation/{alloc['ID']}")
    (port,) = whole["AllocatedResources"]["Shared"]["Ports"]
    assert (port["Label"], port["HostIP"]) == ("http", "127.0.0.1")
    assert 20000 <= port["Value"] <= 32000
    assert [event["Type"] for event in whole["TaskStates"]["app"]["Events"]] == ["Received", "Task Setup", "Started"]
    assert whole["Job"]["Meta"] == job["Meta"]
    (stub,) = await calls.get("/v1/allocations", resources=True, filter='JobID matches "^p/"')
    assert stub["AllocatedResources"] == whole["AllocatedResources"]
    assert (await calls.get("/v1/job/p/summary"))["Children"] == {"Dead": 0, "Pending": 0, "Running": 1}

    await calls.put(f"/v1/client/allocation/{alloc['ID']}/signal", {"Task": "app", "Signal": "SIGTERM"})
    ended = await only_allocation(nomad, child, "failed")
    state = ended["TaskStates"]["app"]
    assert (state["State"], state["Failed"], ended["ClientDescription"]) == ("dead", True, "Failed tasks")
    assert state["Events"][-2]["Details"] == {"exit_code": "143", "signal": "15", "oom_killed": "false"}
    assert state["Events"][-1]["DisplayMessage"] == "Policy allows no restarts"
    assert (await calls.get(path))["Status"] == "dead"
    reply = await calls.call(
        "POST", f"/v1/client/allocation/{alloc['ID']}/signal", {"Task": "app", "Signal": "SIGTERM"}
    )
    assert refused(reply) == (500, "Task not running")

    await calls.put("/v1/system/gc")
    # It answers before it is done.
    await calls.until("/v1/jobs", lambda jobs: [job["ID"] for job in jobs] == ["p"])
    assert refused_read(await calls.call("GET", path)) == (404, "job not found")
    assert refused_read(await calls.call("GET", f"/v1/allocation/{alloc['ID']}")) == (404, "alloc not found")
    assert (await calls.get("/v1/job/p"))["Status"] == "running", "a sleeping parent is not collected"


def refused_read(reply: Reply) -> tuple[int, str]:
    """What is not found is told with an index."""
    assert reply.index >= 0
    return refused(reply)


async def test_exit_codes_decide_what_became_of_it(nomad: Nomad) -> None:
    await nomad.calls.put("/v1/jobs", parent("good", "true"))
    await nomad.calls.put("/v1/jobs", parent("bad", "sh -c 'exit 3'"))
    await nomad.calls.put("/v1/jobs", parent("none", task={"Config": {"command": "/no/such/program"}}))
    good, bad, none = [(await dispatch(nomad, job))["DispatchedJobID"] for job in ("good", "bad", "none")]

    done = await only_allocation(nomad, good, "complete")
    assert done["ClientDescription"] == "All tasks have completed"
    failed = await only_allocation(nomad, bad, "failed")
    assert failed["DesiredStatus"] == "run"
    assert [event["Type"] for event in failed["TaskStates"]["app"]["Events"]][-2:] == ["Terminated", "Not Restarting"]
    absent = await only_allocation(nomad, none, "failed")
    assert "Driver Failure" in [event["Type"] for event in absent["TaskStates"]["app"]["Events"]]


async def test_a_stopped_child_is_asked_to_end(nomad: Nomad) -> None:
    script = "sh -c 'trap \"sleep 0.3; exit 0\" TERM; while :; do sleep 0.05; done'"
    await nomad.calls.put("/v1/jobs", parent("p", script))
    child = (await dispatch(nomad, "p"))["DispatchedJobID"]
    alloc = await only_allocation(nomad, child, "running")
    stopped = (await nomad.calls.call("DELETE", f"/v1/job/{quoted(child)}")).json

    assert stopped["EvalID"]
    done = await only_allocation(nomad, child, "complete")
    assert (done["ID"], done["DesiredStatus"]) == (alloc["ID"], "stop")
    assert done["DesiredDescription"] == "alloc not needed due to job update"
    whole = await nomad.calls.get(f"/v1/allocation/{alloc['ID']}")
    events = whole["TaskStates"]["app"]["Events"]
    assert [event["Type"] for event in events][-3:] == ["Killing", "Terminated", "Killed"]
    assert events[-3]["DisplayMessage"] == "Sent interrupt. Waiting 5s before force killing"
    job = await nomad.calls.get(f"/v1/job/{quoted(child)}")
    assert (job["Stop"], job["Status"], job["Version"]) == (True, "dead", 1)
    nothing = (await nomad.calls.call("DELETE", "/v1/job/unknown")).json
    assert (nothing["EvalID"], nothing["Index"]) == ("", 0)


async def test_blocking_queries_wait_for_a_change(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/jobs", parent("p"))
    first = await calls.call("GET", "/v1/job/p")
    unknown = await calls.call("GET", "/v1/job/unknown/allocations", index=1, wait="100ms")
    assert (unknown.status, unknown.json, unknown.index) == (200, [], 0)
    waited = await calls.call("GET", "/v1/job/p", index=first.index, wait="100ms")
    assert (waited.index, waited.json) == (first.index, first.json)
    ahead = asyncio.ensure_future(calls.call("GET", "/v1/job/p", index=first.index, wait="30s"))
    behind = await calls.call("GET", "/v1/job/p", index=first.index - 1, wait="30s")
    assert behind.index == first.index
    await calls.put("/v1/jobs", parent("p", Meta={"revision": "r2"}))
    assert (await ahead).json["Meta"] == {"revision": "r2"}
    for params, text in (({"index": "x"}, "Invalid index"), ({"index": 1, "wait": "x"}, "Invalid wait time")):
        assert refused(await calls.call("GET", "/v1/jobs", **params)) == (400, text)


async def test_what_is_not_there(nomad: Nomad) -> None:
    for path, status, text in (
        ("/v1/job/no", 404, "job not found"),
        ("/v1/job/no/summary", 404, "job not found"),
        ("/v1/job/no/versions", 404, "job versions not found"),
        (f"/v1/allocation/{UNKNOWN}", 404, "alloc not found"),
        (f"/v1/evaluation/{UNKNOWN}", 404, "eval not found"),
        (f"/v1/node/{UNKNOWN}", 404, "node not found"),
        ("/v1/namespace/no", 404, "Namespace not found"),
    ):
        assert refused_read(await nomad.calls.call("GET", path)) == (status, text)
    for path in ("/v1/job/no/evaluations", "/v1/job/no/allocations"):
        assert await nomad.calls.get(path) == []
    for path, text in (
        ("/v1/allocation/x", "alloc lookup failed: index error: UUID must be 36 characters"),
        ("/v1/node/x", "node lookup failed: index error: UUID must be 36 characters"),
    ):
        assert refused(await nomad.calls.call("GET", path)) == (500, text)
    assert refused(await nomad.calls.call("DELETE", "/v1/jobs")) == (405, "Invalid method")
    assert (await nomad.calls.call("GET", "/v1/nothing")).status == 404


async def test_lists_are_filtered_and_come_in_pages(nomad: Nomad) -> None:
    calls = nomad.calls
    for name in ("a", "b", "c"):
        await calls.put("/v1/jobs", parent(name, Meta=None if name == "b" else {"revision": name}))
    for text, names in (
        ("Meta.revision is not empty", ["a", "c"]),
        ("Meta.revision is empty", ["b"]),
        ('Meta.revision != "a"', ["b", "c"]),
        ('"revision" in Meta and not (ID == a)', ["c"]),
        ('Meta["revision"] == c or Name matches "^[ab]$"', ["a", "b", "c"]),
        ('Status not matches "^dead$" and ParentID is empty', ["a", "b", "c"]),
        ("Stop == true", []),
    ):
        assert [job["ID"] for job in await calls.get("/v1/jobs", filter=text)] == names, text
    assert all("Meta" not in job for job in await calls.get("/v1/jobs"))
    assert [job.get("Meta") for job in await calls.get("/v1/jobs", meta=True)] == [
        {"revision": "a"},
        None,
        {"revision": "c"},
    ]
    first = await calls.call("GET", "/v1/jobs", per_page=2)
    assert [job["ID"] for job in first.json] == ["a", "b"]
    rest = await calls.call("GET", "/v1/jobs", per_page=2, next_token=first.headers["X-Nomad-Nexttoken"])
    assert ([job["ID"] for job in rest.json], rest.headers.get("X-Nomad-Nexttoken")) == (["c"], None)
    wrong = await calls.call("GET", "/v1/jobs", filter="Foo == 1")
    assert wrong.status == 400
    assert 'struct field with name "Foo"' in wrong.text
    assert (await calls.call("GET", "/v1/jobs", filter="(")).text.startswith("failed to create result paginator")


async def test_logs_are_read_whole_in_part_and_as_they_come(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/jobs", parent("p", "sh -c 'echo wrong >&2; sleep 0.5; echo later; sleep 60'"))
    child = (await dispatch(nomad, "p"))["DispatchedJobID"]
    alloc = (await only_allocation(nomad, child, "running"))["ID"]
    path = f"/v1/client/fs/logs/{alloc}"
    out: dict[str, Any] = {"task": "app", "type": "stdout"}

    read = b""
    beats = 0
    async with asyncio.timeout(PATIENCE), calls.open(path, follow=True, **out) as response:
        async for piece in response.content.iter_any():
            read += piece
            beats = read.count(b"{}")
            if beats and b'"Offset":12' in read:
                break
    frames = [json.loads("{" + part) for part in read.decode().replace("}{", "}\n{").replace("{", "").splitlines()]
    told = [frame for frame in frames if frame]
    assert b"".join(base64.b64decode(frame["Data"]) for frame in told) == b"began\nlater\n"
    assert {frame["File"] for frame in told} == {"alloc/logs/app.stdout.0"}
    plain_text = {**out, "plain": True}
    parts: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "began\nlater\n"),
        ({"offset": 6}, "later\n"),
        ({"origin": "end", "offset": 3}, "er\n"),
        ({"origin": "end", "offset": 100}, "began\nlater\n"),
    )
    for params, text in parts:
        assert (await calls.call("GET", path, **plain_text, **params)).text == text
    assert (await calls.call("GET", path, task="app", type="stderr", plain=True)).text == "wrong\n"
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "must provide task name"),
        ({"task": "app"}, "must provide log type (stdout/stderr)"),
        ({"task": "zz", "type": "stdout"}, 'unknown task name "zz"'),
        ({**out, "origin": "middle"}, "origin must be start or end"),
    )
    for params, text in wrong:
        assert refused(await calls.call("GET", path, **params)) == (400, text)
    gone = await calls.call("GET", f"/v1/client/fs/logs/{UNKNOWN}", **out)
    assert refused(gone) == (404, f'Unknown allocation "{UNKNOWN}"')


async def test_namespaces_hold_jobs_apart(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/namespace", {"Name": "other", "Description": "d"})
    await calls.put("/v1/jobs", parent("p", Namespace="other"))
    assert (await calls.call("GET", "/v1/job/p")).status == 404
    assert (await calls.get("/v1/job/p", namespace="other"))["Namespace"] == "other"
    assert [job["Namespace"] for job in await calls.get("/v1/jobs", namespace="*")] == ["other"]
    assert await calls.get("/v1/jobs", namespace="unknown") == []
    assert {found["Name"] for found in await calls.get("/v1/namespaces")} == {"default", "other"}
    in_use = await calls.call("DELETE", "/v1/namespace/other")
    text = '1 error occurred:\n\t* namespace "other" has non-terminal jobs in regions: [global]\n\n'
    assert refused(in_use) == (500, text)
    await calls.call("DELETE", "/v1/job/p", namespace="other", purge=True)
    assert (await calls.call("DELETE", "/v1/namespace/other")).status == 200
    assert refused(await calls.call("DELETE", "/v1/namespace/other")) == (500, "namespace not found")


async def test_a_plan_tells_what_would_be_and_does_nothing(nomad: Nomad) -> None:
    calls = nomad.calls
    await calls.put("/v1/jobs", parent("p"))
    same = await calls.put("/v1/job/p/plan", parent("p") | {"Diff": True})
    assert (same["Diff"]["Type"], same["FailedTGAllocs"]) == ("None", None)
    changed = parent("p", "true", Meta={"revision": "r2", "new": "x"}, memory=TOO_MUCH) | {"Diff": True}
    plan = await calls.put("/v1/job/p/plan", changed)
    assert plan["Diff"]["Type"] == "Edited"
    fields = {field["Name"]: (field["Type"], field["Old"], field["New"]) for field in plan["Diff"]["Fields"]}
    assert fields == {"Meta[new]": ("Added", "", "x"), "Meta[revision]": ("Edited", "r1", "r2")}
    (task,) = plan["Diff"]["TaskGroups"][0]["Tasks"]
    assert task["Annotations"] == ["forces create/destroy update"]
    assert {each["Name"] for each in task["Objects"]} == {"Config", "Resources"}
    assert plan["FailedTGAllocs"]["replica"]["DimensionExhausted"] == {"memory": 1}
    assert plan["CreatedEvals"][0]["Status"] == "blocked"
    new = await calls.put("/v1/job/q/plan", parent("q") | {"Diff": True})
    assert (new["Diff"]["Type"], new["JobModifyIndex"]) == ("Added", 0)
    assert [job["ID"] for job in await calls.get("/v1/jobs")] == ["p"]
    more = {"Resources": {"CPU": 20, "MemoryMB": 32, "MemoryMaxMB": -1}}
    for path in ("/v1/validate/job", "/v1/job/q/plan"):
        assert (await calls.put(path, parent("q")))["Warnings"] == ""
        assert (await calls.put(path, parent("q", task=more)))["Warnings"] == (
            '1 warning:\n\n* Memory oversubscription is not enabled; Task "replica.app" memory_max value will be '
            "ignored. Update the Scheduler Configuration to allow oversubscription."
        )
    checked = await calls.put("/v1/validate/job", parent("a b"))
    assert (checked["ValidationErrors"], checked["DriverConfigValidated"]) == (["Job ID contains a space"], True)
