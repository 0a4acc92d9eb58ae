"""Setting up a real Nomad with ACLs: what its tokens may do, and that a real OpenBao believes its identities."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.settings import NomadSettings, Settings, VaultSettings
from tests.support.nomad_agent import NomadAgent, nomad_program
from tests.support.openbao import OpenBao

pytestmark = pytest.mark.skipif(nomad_program() is None, reason="no nomad on PATH")
NAMESPACE = "modalnomad-main"


def job(id: str, **more: Any) -> dict[str, Any]:
    task = {"Name": "app", "Driver": "raw_exec", "Config": {"command": "/bin/sleep", "args": ["60"]}}
    task["Resources"] = {"CPU": 50, "MemoryMB": 32}
    group = {"Name": "replica", "Count": 1, "Tasks": [task], "RestartPolicy": {"Attempts": 0, "Mode": "fail"}}
    body = {"ID": id, "Name": id, "Namespace": NAMESPACE, "Type": "batch", "Datacenters": ["*"], "TaskGroups": [group]}
    return {**body, "ParameterizedJob": {}, **more}


class Roles:
    """A client for each role, and one that may do everything."""

    def __init__(self, agent: NomadAgent) -> None:
        self.agent = agent
        self._open: list[HttpClient] = []

    def api(self, token: str) -> NomadApi:
        settings = NomadSettings(address=self.agent.address, token=SecretStr(token))
        self._open.append(HttpClient(nomad_server(settings)))
        return NomadApi(self._open[-1])

    async def of(self, policy: str) -> NomadApi:
        made = await self.agent.calls.put(
            "/v1/acl/token", {"Name": f"{policy} {uuid.uuid4()}", "Type": "client", "Policies": [policy]}
        )
        return self.api(made["SecretID"])

    async def close(self) -> None:
        for client in self._open:
            await client.close()


@pytest.fixture
async def agent() -> AsyncIterator[NomadAgent]:
    async with NomadAgent(acl=True) as running:
        yield running


@pytest.fixture
async def roles(agent: NomadAgent) -> AsyncIterator[Roles]:
    found = Roles(agent)
    yield found
    await found.close()


async def test_each_role_may_do_what_it_is_for_and_nothing_else(
    agent: NomadAgent, roles: Roles, openbao: OpenBao
) -> None:
    settings = Settings(
        nomad=NomadSettings(address=agent.address, token=SecretStr(agent.token)),
        vault=VaultSettings(address=openbao.address, token=SecretStr("root"), mount="kv-real", auth_mount="jwt-real"),
    )
    for outcome in ("made", "there"):
        steps = [step async for step in set_up(settings, ["main"]) if step.server != "consul"]
        assert {step.outcome for step in steps} == {outcome}, steps

    deployer, router, viewer = [await roles.of(f"modalnomad-{who}") for who in ("deployer", "router", "viewer")]
    await deployer.plan(job("a.f.r1"))
    await deployer.validate(job("a.f.r1"))
    await deployer.register({"Job": job("a.f.r1")}, expect=0)
    for refused in (
        router.register({"Job": job("a.f.r2")}),
        router.register({"Job": job("a.f.r1", Priority=60)}),
        router.plan(job("a.f.r1")),
        router.deregister("a.f.r1", NAMESPACE),
        router.deregister("a.f.r1", NAMESPACE, purge=True),
        viewer.register({"Job": job("a.f.r2")}),
        viewer.dispatch("a.f.r1", NAMESPACE, {}),
        viewer.deregister("a.f.r1", NAMESPACE),
        deployer.register({"Job": job("other", Namespace="default")}),
    ):
        with pytest.raises(ServerRefused) as error:
            await refused
        assert error.value.status == 403

    # Per namespace: one stream of all of them ends without a word unless the token has rights in every one there is.
    async with router.stream(("Job", "Allocation", "Evaluation", "Node"), NAMESPACE) as stream:
        child = (await router.dispatch("a.f.r1", NAMESPACE, {}, token="one")).job
        seen = b""
        while child.encode() not in seen:
            more = await stream.content.readany()
            assert more, "the stream ended"
            seen += more
    allocations = await running(router, child)
    assert [found["ID"] for found in (await router.nodes()).items] == [agent.node]
    assert (await router.job("a.f.r1", NAMESPACE)) is not None
    assert [found["ID"] for found in (await viewer.allocations(NAMESPACE)).items] == [allocations["ID"]]
    assert await viewer.tail(allocations["ID"], "app", "stdout", 100, limit=5) == b""
    with pytest.raises(ServerRefused):
        await viewer.signal(allocations["ID"], "app", "SIGKILL")
    await router.signal(allocations["ID"], "app", "SIGKILL")
    await deployer.deregister("a.f.r1", NAMESPACE, purge=True)


async def running(api: NomadApi, job: str) -> dict[str, Any]:
    """The allocation of a job, once its task runs."""
    index = 0
    while True:
        answer = await api.http.request(
            "GET",
            f"/v1/job/{job.replace('/', '%2F')}/allocations",
            params={"namespace": NAMESPACE, "index": index, "wait": "10s"},
            limit=20,
        )
        index = int(answer.headers["X-Nomad-Index"])
        for found in answer.json():
            if found["ClientStatus"] == "running":
                return dict(found)
