"""What a token of Nomad's may do, by capability, and how a denial reads."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nomad_calls import PATIENCE
from tests.support.nomads import KINDS, Nomad, opened, parent, plain, quoted

DENIED = (403, "Permission denied")
UNKNOWN = "00000000-0000-0000-0000-000000000000"
ROUTER = """
namespace "a" { capabilities = ["dispatch-job", "read-job", "list-jobs", "alloc-lifecycle"] }
node { policy = "read" }
"""


@pytest.fixture(params=KINDS)
async def nomad(request: pytest.FixtureRequest) -> AsyncIterator[Nomad]:
    """With ACL; a job of the same name runs in the namespaces `a` and `b`."""
    async with opened(request.param, acl=True) as found:
        for namespace in ("a", "b"):
            await found.calls.put("/v1/namespace", {"Name": namespace})
            await found.calls.put("/v1/jobs", parent("p", Namespace=namespace))
        yield found


async def token(nomad: Nomad, rules: str) -> str:
    """Of a client with one policy of its own."""
    name = f"policy-{abs(hash(rules))}"
    await nomad.calls.put(f"/v1/acl/policy/{name}", {"Name": name, "Rules": rules})
    made = await nomad.calls.put("/v1/acl/token", {"Name": name, "Type": "client", "Policies": [name]})
    return str(made["SecretID"])


async def started(nomad: Nomad, namespace: str) -> dict[str, Any]:
    """A child's allocation that runs."""
    body = {"Meta": {"a": "60"}}
    child = (await nomad.calls.put("/v1/job/p/dispatch", body, namespace=namespace))["DispatchedJobID"]
    path = f"/v1/job/{quoted(child)}/allocations"
    found = await nomad.calls.until(
        path, lambda each: each and each[0]["ClientStatus"] == "running", namespace=namespace
    )
    return dict(found[0])


async def test_the_least_a_router_needs(nomad: Nomad) -> None:
    secret = await token(nomad, ROUTER)
    own, other = await started(nomad, "a"), await started(nomad, "b")
    signal = {"Task": "app", "Signal": "SIGKILL"}
    body = parent("p", Namespace="a")
    in_a: dict[str, Any] = {"namespace": "a"}
    in_b: dict[str, Any] = {"namespace": "b"}
    logs: dict[str, Any] = {"task": "app", "type": "stdout"}
    hidden = (500, f'Unknown allocation "{other["ID"]}"')
    for method, path, data, params, expected in (
        ("GET", "/v1/jobs", None, in_a, 200),
        ("GET", "/v1/jobs", None, {"namespace": "*"}, 200),
        ("GET", "/v1/jobs", None, in_b, DENIED),
        ("GET", "/v1/jobs", None, {}, DENIED),
        ("GET", "/v1/job/p", None, in_a, 200),
        ("GET", "/v1/job/p", None, in_b, DENIED),
        ("GET", "/v1/job/p/summary", None, in_a, 200),
        ("GET", "/v1/job/p/versions", None, in_a, 200),
        ("GET", "/v1/allocations", None, {"namespace": "*"}, 200),
        ("GET", f"/v1/allocation/{own['ID']}", None, {}, 200),
        ("GET", f"/v1/allocation/{other['ID']}", None, {}, hidden),
        ("GET", f"/v1/evaluation/{own['EvalID']}", None, in_a, 200),
        ("GET", f"/v1/evaluation/{own['EvalID']}", None, {"namespace": "*"}, 200),
        ("GET", f"/v1/evaluation/{own['EvalID']}", None, {}, DENIED),
        ("GET", "/v1/nodes", None, {}, 200),
        ("GET", f"/v1/node/{nomad.node}", None, {}, 200),
        ("POST", f"/v1/node/{nomad.node}/drain", {"DrainSpec": {"Deadline": 1}}, {}, DENIED),
        ("POST", f"/v1/node/{nomad.node}/eligibility", {"Eligibility": "ineligible"}, {}, DENIED),
        ("POST", "/v1/job/p/dispatch", {"Meta": {"a": "1"}}, in_a, 200),
        ("POST", "/v1/job/p/dispatch", {}, in_b, DENIED),
        ("POST", "/v1/jobs", body, {}, DENIED),
        ("POST", "/v1/job/p/plan", body, {}, DENIED),
        ("POST", "/v1/validate/job", body, {}, 200),
        ("POST", "/v1/validate/job", parent("p", Namespace="b"), {}, DENIED),
        ("DELETE", "/v1/job/p", None, in_a, DENIED),
        ("GET", f"/v1/client/fs/logs/{own['ID']}", None, logs, (500, "Permission denied")),
        ("POST", f"/v1/client/allocation/{other['ID']}/signal", signal, {}, DENIED),
        ("POST", f"/v1/client/allocation/{own['ID']}/signal", signal, {}, 200),
        ("PUT", "/v1/namespace", {"Name": "x"}, {}, DENIED),
        ("GET", "/v1/namespace/b", None, {}, DENIED),
        ("GET", "/v1/acl/tokens", None, {}, DENIED),
        ("GET", "/v1/agent/self", None, {}, DENIED),
        ("PUT", "/v1/system/gc", None, {}, DENIED),
        ("GET", "/v1/acl/token/self", None, {}, 200),
        ("GET", "/v1/status/leader", None, {}, 200),
        ("GET", "/.well-known/jwks.json", None, {}, 200),
    ):
        reply = await nomad.calls.call(method, path, data, token=secret, **params)
        found = reply.status if expected == 200 else (reply.status, reply.text)
        assert found == expected, f"{method} {path} {params}"
    listed = await nomad.calls.call("GET", "/v1/jobs", token=secret, namespace="*")
    assert {job["Namespace"] for job in listed.json} == {"a"}
    seen = await nomad.calls.call("GET", "/v1/namespaces", token=secret)
    assert [each["Name"] for each in seen.json] == ["a"]


async def test_a_jobs_own_identity_has_the_rights_that_a_policy_gives_that_job(nomad: Nomad, tmp_path: Path) -> None:
    policy = {"Name": "own", "Rules": 'namespace "b" { capabilities = ["list-jobs", "dispatch-job"] }'}
    acl = {"Namespace": "a", "JobID": "who"}
    await nomad.calls.put("/v1/acl/policy/own", policy | {"JobACL": acl})
    stored = (await nomad.calls.call("GET", "/v1/acl/policy/own")).json["JobACL"]
    assert stored == acl | {"Group": "", "Task": ""}
    told = {}
    for namespace, name in (("a", "who"), ("a", "other"), ("b", "who")):
        told[namespace, name] = await identity(nomad, namespace, name, tmp_path / f"{namespace}-{name}")

    for who, secret in told.items():
        listed = await nomad.calls.call("GET", "/v1/jobs", token=secret, namespace="b")
        others = await nomad.calls.call("GET", "/v1/jobs", token=secret, namespace="a")
        started = await nomad.calls.call(
            "POST", "/v1/job/p/dispatch", {"Meta": {"a": "1"}}, token=secret, namespace="b"
        )
        written = await nomad.calls.call("POST", "/v1/jobs", parent("q", Namespace="b"), token=secret)
        allowed = 200 if who == ("a", "who") else 403
        assert [each.status for each in (listed, others, started, written)] == [allowed, 403, allowed, 403], who
    for changed in (acl | {"Group": "other"}, acl | {"Group": "replica", "Task": "other"}, {"Namespace": "b"}, None):
        await nomad.calls.put("/v1/acl/policy/own", policy | {"JobACL": changed})
        assert (await nomad.calls.call("GET", "/v1/jobs", token=told["a", "who"], namespace="b")).status == 403, changed
    for changed in (acl | {"Group": "replica", "Task": "app"}, {"Namespace": "a"}):
        await nomad.calls.put("/v1/acl/policy/own", policy | {"JobACL": changed})
        assert (await nomad.calls.call("GET", "/v1/jobs", token=told["a", "who"], namespace="b")).status == 200, changed

    await nomad.calls.call("DELETE", "/v1/job/who", namespace="a")
    path = "/v1/job/who/allocations"
    await nomad.calls.until(path, lambda each: each and each[0]["ClientStatus"] == "complete", namespace="a")
    ended = await nomad.calls.call("GET", "/v1/jobs", token=told["a", "who"], namespace="b")
    assert (ended.status, ended.text) == DENIED


async def identity(nomad: Nomad, namespace: str, name: str, file: Path) -> str:
    """What Nomad signed for the task of a job, told by the task."""
    os.mkfifo(file)
    script = f'printf %s "$NOMAD_TOKEN" > {file}; exec sleep 60'
    config = {"command": "/bin/sh", "args": ["-c", script]}
    job = plain(name, Namespace=namespace, task={"Identity": {"Env": True}, "Config": config})
    await nomad.calls.put("/v1/jobs", job)
    path = f"/v1/job/{name}/allocations"
    (alloc,) = await nomad.calls.until(
        path, lambda each: each and each[0]["ClientStatus"] == "running", namespace=namespace
    )
    told = await asyncio.to_thread(file.read_text)
    if nomad.fake is not None:  # it gives its tasks none
        return nomad.fake.signer.identity(alloc, job["Job"], "app", name="default", audience=["nomadproject.io"])
    return told


async def test_who_gives_no_token_and_who_gives_a_wrong_one(nomad: Nomad) -> None:
    nobody = await nomad.calls.call("GET", "/v1/acl/token/self", token="")
    wrong = await nomad.calls.call("GET", "/v1/acl/token/self", token=UNKNOWN)

    assert (nobody.status, nobody.json["AccessorID"], nobody.json["Policies"]) == (200, "anonymous", ["anonymous"])
    assert (wrong.status, wrong.text) == DENIED


async def test_what_else_a_deployer_needs(nomad: Nomad) -> None:
    secret = await token(nomad, 'namespace "a" { capabilities = ["submit-job", "read-job"] }')
    body = parent("q", Namespace="a")
    for method, path, data in (
        ("POST", "/v1/validate/job", body),
        ("POST", "/v1/job/q/plan", body | {"Diff": True}),
        ("POST", "/v1/jobs", body),
        ("DELETE", "/v1/job/q", None),
    ):
        assert (await nomad.calls.call(method, path, data, token=secret, namespace="a")).status == 200, path
    for path in ("/v1/jobs", "/v1/nodes"):
        reply = await nomad.calls.call("GET", path, token=secret, namespace="a")
        assert (reply.status, reply.text) == DENIED


async def test_logs_need_a_right_of_their_own(nomad: Nomad) -> None:
    alloc = await started(nomad, "a")
    secret = await token(nomad, 'namespace "a" { capabilities = ["read-logs"] }')
    path = f"/v1/client/fs/logs/{alloc['ID']}"
    assert (await nomad.calls.call("GET", path, token=secret, task="app", type="stdout", plain=True)).text == "began\n"


async def test_a_stream_that_is_denied_is_open_and_silent(nomad: Nomad) -> None:
    rules = '{ capabilities = ["read-job"] }'
    exact = await token(nomad, f'namespace "a" {rules}')
    pattern = await token(nomad, f'namespace "a*" {rules}')
    every = await token(nomad, f'namespace "*" {rules}')
    asked = (
        (exact, "a", {"a"}),
        (exact, "b", None),
        (exact, "*", None),
        (pattern, "a", {"a"}),
        (pattern, "*", None),
        (every, "*", {"a", "b"}),
        (every, "b", {"b"}),
        (nomad.calls.token, "*", {"a", "b"}),
        ("", "a", None),
    )
    found = await asyncio.gather(*(heard(nomad, *each, topic="Job") for each in asked))
    assert found == [expected for _, _, expected in asked]
    assert await heard(nomad, every, "a", None, topic="Node") is None
    assert await heard(nomad, every, "a", None) is None, "all topics are for management"


async def heard(nomad: Nomad, secret: str, namespace: str, most: set[str] | None, **params: str) -> set[str] | None:
    """Namespaces of the events that are kept; None: nothing was said. It is listened until all of `most` are heard, and
    then for another half second."""
    spoke, found = False, set[str]()
    async with nomad.calls.open("/v1/event/stream", token=secret, namespace=namespace, **params) as response:
        assert response.status == 200
        try:
            async with asyncio.timeout(0.5 if most is None else PATIENCE) as limit:
                async for line in response.content:
                    spoke = True
                    found |= {event["Namespace"] for event in json.loads(line).get("Events", ())}
                    if most is not None and found >= most:
                        limit.reschedule(asyncio.get_running_loop().time() + 0.5)
                        most = None
        except TimeoutError:
            pass
    return found if spoke else None


async def test_strangers_are_denied(nomad: Nomad) -> None:
    for secret in ("", UNKNOWN):
        for path in ("/v1/jobs", "/v1/nodes", "/v1/job/p", "/v1/allocations"):
            reply = await nomad.calls.call("GET", path, token=secret)
            assert (reply.status, reply.text) == DENIED
        reply = await nomad.calls.call("POST", "/v1/job/p/dispatch", {}, token=secret, namespace="a")
        assert (reply.status, reply.text) == DENIED


async def test_policies_and_tokens_are_made_and_taken_away(nomad: Nomad) -> None:
    calls = nomad.calls
    policy = {"Name": "router", "Description": "d", "Rules": ROUTER}
    await calls.put("/v1/acl/policy/router", policy)
    kept = await calls.get("/v1/acl/policy/router")
    assert (kept["Rules"], kept["Description"], kept["CreateIndex"]) == (ROUTER, "d", kept["ModifyIndex"])
    await calls.put("/v1/acl/policy/router", policy | {"Description": "e"})
    assert [each["Name"] for each in await calls.get("/v1/acl/policies")] == ["router"]
    for rules, text in (
        ('namespace "a" { capabilities = ["zz"] }', "Invalid namespace capability 'zz'"),
        ("namespace {", "object expected closing RBRACE got: EOF"),
    ):
        reply = await calls.call("PUT", "/v1/acl/policy/bad", {"Name": "bad", "Rules": rules})
        assert (reply.status, text in reply.text) == (400, True), reply.text
    assert (await calls.call("GET", "/v1/acl/policy/bad")).status == 404

    made = await calls.put("/v1/acl/token", {"Name": "r", "Type": "client", "Policies": ["router"]})
    assert (await calls.call("GET", "/v1/jobs", token=made["SecretID"], namespace="a")).status == 200
    own = await calls.call("GET", "/v1/acl/token/self", token=made["SecretID"])
    assert own.json["AccessorID"] == made["AccessorID"]
    assert all("SecretID" not in each for each in await calls.get("/v1/acl/tokens"))
    nothing = await calls.call("PUT", "/v1/acl/token", {"Name": "r", "Type": "client"})
    text = "token 0 invalid: 1 error occurred:\n\t* client token missing policies or roles\n\n"
    assert (nothing.status, nothing.text) == (400, text)
    assert (await calls.call("DELETE", f"/v1/acl/token/{made['AccessorID']}")).status == 200
    gone = await calls.call("GET", "/v1/jobs", token=made["SecretID"], namespace="a")
    assert (gone.status, gone.text) == DENIED
    again = await calls.call("DELETE", f"/v1/acl/token/{made['AccessorID']}")
    assert (again.status, again.text) == (400, f"Cannot delete nonexistent tokens: {made['AccessorID']}")
    assert (await calls.call("DELETE", "/v1/acl/policy/router")).status == 200
    second = await calls.call("POST", "/v1/acl/bootstrap")
    assert second.status == 400
    assert second.text.startswith("ACL bootstrap already done (reset index: ")
