"""A real Nomad takes what is rendered: it keeps every key, and starts a replica as it says."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk import contract

from modalnomad.deploy.archive import write_archive
from modalnomad.hashicorp.artifact_server import ArtifactServer
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.render.cluster import REPLICA_SERVICE, idempotency_token
from modalnomad.render.nomad import Rendering, dispatch_body, one_of, parent_job, prewarm_job
from modalnomad.render.nomad_devices import devices
from modalnomad.settings import ArtifactSettings
from tests.support.fakes.consul import FakeConsul
from tests.support.nomad_agent import NomadAgent, nomad_program
from tests.support.nomad_calls import PATIENCE
from tests.support.rendered import bodies, cases, rendering, revision

pytestmark = [
    pytest.mark.skipif(nomad_program() is None, reason="no nomad on PATH: the rendered jobs meet no real server"),
    pytest.mark.timeout(60),
]

VAULT = {
    "enabled": True,
    "address": "http://127.0.0.1:1",
    "default_identity": {"aud": ["vault.io"], "ttl": "1h"},
}
NAMESPACES = ("modalnomad-main", "modalnomad-staging")
HERE = {"namespace": NAMESPACES[0]}
CARD = "NVIDIA A100-SXM4-80GB"
TELLS = """
import json, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
task = pathlib.Path(os.environ["NOMAD_TASK_DIR"])
found = {}
for path in task.rglob("*"):
    if path.is_file():
        text = path.read_text() if path.stat().st_size < 99 else ""
        found[str(path.relative_to(task))] = [oct(path.stat().st_mode & 0o777), text]
told = {"argv": sys.argv[1:], "isolated": sys.flags.isolated, "files": found, "environ": dict(os.environ)}
print(json.dumps(told), flush=True)
signal.pause()
"""


async def prepared(agent: NomadAgent) -> None:
    for name in NAMESPACES:
        await agent.calls.put(f"/v1/namespace/{name}", {"Name": name})
    await agent.calls.put("/v1/node/pool/web", {"Name": "web"})


def lost(sent: Any, kept: Any, path: str = "") -> Iterator[str]:
    """What was sent and did not come back as it was; a server may add."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        for name, value in sent.items():
            if name in kept:
                yield from lost(value, kept[name], f"{path}.{name}")
            else:
                yield f"{path}.{name} is gone"
    elif isinstance(sent, list) and isinstance(kept, list) and len(sent) <= len(kept):
        for number, value in enumerate(sent):
            yield from lost(value, kept[number], f"{path}[{number}]")
    elif sent != kept:
        yield f"{path} was {sent!r} and is {kept!r}"


def test_the_comparison_notices() -> None:
    assert list(lost({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}, 3]})) == []
    assert list(lost({"a": [{"b": 1}], "d": 0, "e": [1]}, {"a": [{}], "d": False or "", "e": []})) == [
        ".a[0].b is gone",
        ".d was 0 and is ''",
        ".e was [1] and is []",
    ]


async def test_every_key_is_kept() -> None:
    async with NomadAgent(vault=VAULT) as agent:
        await prepared(agent)
        problems: list[str] = []
        for name, body in bodies().items():
            answer = (await agent.calls.call("POST", "/v1/validate/job", {"Job": body["Job"]})).json
            assert not answer["ValidationErrors"], f"{name}: {answer['Error']}"
            assert "shutdown_delay" not in answer["Warnings"], name
            registered = await agent.calls.call("POST", "/v1/jobs", body)
            assert registered.status == 200, f"{name}: {registered.text}"
            where = {"namespace": body["Job"]["Namespace"]}
            kept = await agent.calls.get(f"/v1/job/{body['Job']['ID']}", **where)
            problems += (f"{name}: {problem}" for problem in lost(body["Job"], kept))
            if "Submission" in body:
                path = f"/v1/job/{body['Job']['ID']}/submission"
                submission = await agent.calls.get(path, version=kept["Version"], **where)
                problems += (f"{name}: {problem}" for problem in lost(body["Submission"], submission))

        assert not problems


async def test_expressions_for_cards_mean_to_nomad_what_they_mean_here() -> None:
    async with FakeConsul() as consul, NomadAgent(consul=consul_of(consul), meta={"model": CARD}) as agent:
        await prepared(agent)
        await agent.calls.until(f"/v1/node/{agent.node}", lambda node: "consul.version" in node["Attributes"])
        for wanted, fits in (
            (["A100"], True),
            (["A10"], False),
            (["H100", "A100-80GB"], True),
            (["H100", "A100-40GB"], True),
            (["T4", "A100-141GB"], False),
            (["RTX-PRO-6000"], False),
        ):
            job = one_of(parent_job(*cases()["plain"]))["Job"]
            (request,) = devices(wanted)
            models = [c | {"LTarget": "${meta.model}"} for c in request["Constraints"] if "model" in c["LTarget"]]
            job["TaskGroups"][0]["Constraints"] += models
            job["TaskGroups"][0]["Affinities"] = [
                each | {"LTarget": "${meta.model}"} for each in request.get("Affinities", ())
            ]
            plan = await agent.calls.put(f"/v1/job/{job['ID']}/plan", {"Job": job, "Diff": False}, **HERE)
            assert (plan["FailedTGAllocs"] is None) == fits, f"{wanted}: {plan['FailedTGAllocs']}"


def consul_of(consul: FakeConsul) -> str:
    return consul.address.removeprefix("http://")


@pytest.fixture
async def artifacts(tmp_path: Path) -> AsyncIterator[tuple[ObjectArtifacts, str]]:
    """Where they are kept, and the URL they are handed out at."""
    kept = ObjectArtifacts(ArtifactSettings(), tmp_path / "home")
    server = ArtifactServer(kept, "127.0.0.1", 0)
    await server.start()
    yield kept, f"http://127.0.0.1:{server.port}"
    await server.close()


async def test_a_dispatched_replica_gets_its_files_and_variables(
    artifacts: tuple[ObjectArtifacts, str], tmp_path: Path
) -> None:
    made, settings = await stored(artifacts, tmp_path)
    body = parent_job(made, settings)
    key = ReplicaKey(PoolKey(made.id, '{"size":"${HOME}"}'), 3, 2)
    dispatch = f"/v1/job/{body['Job']['ID']}/dispatch"
    async with FakeConsul() as consul, NomadAgent(consul=consul_of(consul)) as agent:
        await prepared(agent)
        assert (await agent.calls.call("POST", "/v1/jobs", body)).status == 200
        why = dispatch_body(key, reason="requests: ${HOME}", request_id="AB-12", decision={"waiting": 1})
        dispatched = await agent.calls.put(dispatch, why, idempotency_token=idempotency_token(key), **HERE)
        child = dispatched["DispatchedJobID"]
        told = await words_of(agent, child)
        (meta,) = [
            service["Meta"] for service in consul.agent.services.values() if service["Service"] == REPLICA_SERVICE
        ]
        await end(agent, child)
        by_hand = (await agent.calls.put(dispatch, {}, **HERE))["DispatchedJobID"]
        nothing = (await words_of(agent, by_hand))["environ"]
        await end(agent, by_hand)

    assert child.startswith("shop.resize.r17/dispatch-003-requests-ab12-")
    assert (told["argv"], told["isolated"]) == (["launch"], 1)
    assert told["files"] == {
        "modalnomad.pyz": ["0o644", ""],
        "root/shop.py": ["0o644", "x = 1"],
        "root/bin/ů run": ["0o755", "true"],
    }
    environ = told["environ"]
    assert (environ[contract.ENV_POOL], environ[contract.ENV_REPLICA]) == (str(key.pool), "3.2")
    assert environ[contract.ENV_BUNDLE] == f"{environ['NOMAD_TASK_DIR']}/root"
    assert environ[contract.ENV_PARAMETERS] == environ["NOMAD_META_parameters"] != ""
    assert environ["NOMAD_META_reason"] == "requests: ${HOME}"
    fixed = {name: value for name, value in body["Job"]["TaskGroups"][0]["Tasks"][0]["Env"].items() if "$" not in value}
    assert fixed.items() <= environ.items()
    # Started by hand in Nomad's pages: absent Meta is empty, not the text "${…}".
    assert (nothing[contract.ENV_POOL], nothing[contract.ENV_REPLICA], nothing[contract.ENV_PARAMETERS]) == (
        "",
        ".",
        "",
    )
    assert (meta["pool"], meta["number"], meta["epoch"]) == (str(key.pool), "3", "2")
    assert (meta["revision"], meta["max_inputs"]) == (made.id, "1")
    assert meta["parameters"] == environ[contract.ENV_PARAMETERS]


async def test_prewarming_runs_once_and_ends(artifacts: tuple[ObjectArtifacts, str], tmp_path: Path) -> None:
    made, settings = await stored(artifacts, tmp_path)
    body = prewarm_job(made, settings)
    async with NomadAgent() as agent:
        await prepared(agent)
        assert (await agent.calls.call("POST", "/v1/jobs", body)).status == 200
        told = await words_of(agent, body["Job"]["ID"])
        await end(agent, body["Job"]["ID"])

    assert (told["argv"], list(told["files"])) == (["prewarm"], ["modalnomad.pyz"])
    assert told["environ"].keys() >= {contract.ENV_PACK, contract.ENV_NODE_STORE, contract.ENV_ARTIFACTS}


async def stored(artifacts: tuple[ObjectArtifacts, str], folder: Path) -> tuple[Revision, Rendering]:
    """A revision whose program tells what it got, and its bundle."""
    kept, url = artifacts
    program, bundle, script, module = (folder / name for name in ("tells.pyz", "bundle.tar.gz", "run.sh", "shop.py"))
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("__main__.py", TELLS)
    script.write_text("true")
    script.chmod(0o755)
    module.write_text("x = 1")
    write_archive({"shop.py": module, "bin/ů run": script}, frozenset({"empty"}), bundle)
    made = revision(parameters=[{"name": "size", "type": "str"}])
    made = made.model_copy(update={"bundle": await kept.put(bundle)})
    return made, dataclasses.replace(rendering(made), artifacts_url=url, sdk=await kept.put(program))


async def allocation_of(agent: NomadAgent, job: str, *states: str) -> dict[str, Any]:
    """The job's only one, when it is in one of these."""
    found = await agent.calls.until(
        "/v1/allocations",
        lambda allocations: any(each["ClientStatus"] in states for each in allocations),
        filter=f'JobID == "{job}"',
        **HERE,
    )
    (allocation,) = found
    return dict(allocation)


async def words_of(agent: NomadAgent, job: str) -> Any:
    """What the job's task says of itself."""
    allocation = await allocation_of(agent, job, "running", "complete", "failed")
    assert allocation["ClientStatus"] == "running", events(allocation)
    path = f"/v1/client/fs/logs/{allocation['ID']}"
    query: dict[str, Any] = {
        "task": "app",
        "type": "stdout",
        "plain": True,
        "follow": True,
        "namespace": "modalnomad-main",
    }
    async with asyncio.timeout(PATIENCE), agent.calls.open(path, **query) as answer:
        return json.loads(await answer.content.readline())


async def end(agent: NomadAgent, job: str) -> None:
    """As routers do it where a drain is not enough; it ends well."""
    allocation = await allocation_of(agent, job, "running")
    path = f"/v1/client/allocation/{allocation['ID']}/signal"
    await agent.calls.put(path, {"TaskName": "app", "Signal": "SIGTERM"}, **HERE)
    over = await allocation_of(agent, job, "complete", "failed")
    assert over["ClientStatus"] == "complete", events(over)


def events(allocation: dict[str, Any]) -> list[str]:
    """What Nomad says of its task."""
    return [event["DisplayMessage"] for state in allocation["TaskStates"].values() for event in state["Events"]]
