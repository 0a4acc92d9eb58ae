"""Setting up a Nomad with ACLs, a real one and the fake: what its tokens may do, and what `doctor` sees with each."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.checks.nomad import nomad_checks
from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.settings import NomadSettings, Settings, VaultSettings
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.nomad_agent import NomadAgent, nomad_program
from tests.support.openbao import OpenBao

NAMESPACE = "modalnomad-main"


def job(id: str, **more: Any) -> dict[str, Any]:
    task = {"Name": "app", "Driver": "raw_exec", "Config": {"command": "/bin/sleep", "args": ["60"]}}
    task["Resources"] = {"CPU": 50, "MemoryMB": 32}
    group = {"Name": "replica", "Count": 1, "Tasks": [task], "RestartPolicy": {"Attempts": 0, "Mode": "fail"}}
    body = {"ID": id, "Name": id, "Namespace": NAMESPACE, "Type": "batch", "Datacenters": ["*"], "TaskGroups": [group]}
    return {**body, "ParameterizedJob": {}, **more}


class Roles:
    """Clients of one Nomad, for each role. `node`: the id of its only one."""

    def __init__(self, address: str, management: str, node: str) -> None:
        self.address, self.management, self.node = address, management, node
        self._open: list[HttpClient] = []

    @property
    def settings(self) -> NomadSettings:
        return NomadSettings(address=self.address, token=SecretStr(self.management))

    def api(self, token: str) -> NomadApi:
        settings = NomadSettings(address=self.address, token=SecretStr(token))
        self._open.append(HttpClient(nomad_server(settings)))
        return NomadApi(self._open[-1])

    async def of(self, policy: str) -> NomadApi:
        body = {"Name": policy, "Type": "client", "Policies": [policy]}
        made = await self.api(self.management).http.request("PUT", "/v1/acl/token", data=body)
        return self.api(made.json()["SecretID"])

    async def close(self) -> None:
        for client in self._open:
            await client.close()


@pytest.fixture(params=["fake", "real"])
async def roles(request: pytest.FixtureRequest) -> AsyncIterator[Roles]:
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            nomad = await stack.enter_async_context(FakeNomad(acl=True))
            found = Roles(nomad.address, nomad.management, nomad.add_node("one"))
        elif nomad_program() is None:
            pytest.skip("no nomad on PATH")
        else:
            agent = await stack.enter_async_context(NomadAgent(acl=True))
            found = Roles(agent.address, agent.token, agent.node)
        stack.push_async_callback(found.close)
        yield found


async def test_each_role_may_do_what_it_is_for_and_nothing_else(roles: Roles, openbao: OpenBao) -> None:
    mount = openbao.mount()
    settings = Settings(
        nomad=roles.settings,
        vault=VaultSettings(address=openbao.address, token=SecretStr("root"), mount=mount, auth_mount=f"jwt-{mount}"),
    )
    for outcomes in ({"made", "changed", "there"}, {"there"}):
        steps = [step async for step in set_up(settings, ["main"], only=["nomad", "vault"])]
        assert {step.outcome for step in steps} <= outcomes, steps

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
    async with router.stream(("Job", "Allocation", "Evaluation", "Node"), NAMESPACE, silence=30.0) as stream:
        child = (await router.dispatch("a.f.r1", NAMESPACE, {}, token="one")).job
        seen = b""
        while child.encode() not in seen:
            more = await stream.content.readany()
            assert more, "the stream ended"
            seen += more
    allocations = await allocation(router, child, NAMESPACE, {"running"})
    assert [found["ID"] for found in (await router.nodes()).items] == [roles.node]
    assert (await router.job("a.f.r1", NAMESPACE)) is not None
    assert await router.namespaces("modalnomad-") == (NAMESPACE,)
    assert [found["ID"] for found in (await viewer.allocations(NAMESPACE)).items] == [allocations["ID"]]
    assert await viewer.tail(allocations["ID"], "app", "stdout", 100, limit=5) == b""
    with pytest.raises(ServerRefused):
        await viewer.signal(allocations["ID"], "app", "SIGKILL")
    await router.signal(allocations["ID"], "app", "SIGKILL")
    await deployer.deregister("a.f.r1", NAMESPACE, purge=True)


async def allocation(api: NomadApi, job: str, namespace: str, statuses: set[str]) -> dict[str, Any]:
    """The one of a job, once it has one of these."""
    index = 0
    while True:
        answer = await api.http.request(
            "GET",
            f"/v1/job/{job.replace('/', '%2F')}/allocations",
            params={"namespace": namespace, "index": index, "wait": "10s"},
            limit=20,
        )
        index = int(answer.headers["X-Nomad-Index"])
        for found in answer.json():
            if found["ClientStatus"] in statuses:
                return dict(found)


async def test_what_doctor_sees_with_each_role(roles: Roles) -> None:
    settings = roles.settings
    assert [step async for step in set_up(Settings(nomad=settings), ["main"], only=["nomad"])]
    says = {}
    for role in ("deployer", "router", "viewer"):
        found = await nomad_checks((await roles.of(f"modalnomad-{role}")).http, settings, "main")
        says[role] = {finding.check: finding for finding in found}
    managing = await nomad_checks(roles.api(roles.management).http, settings, "main")
    unknown = await nomad_checks(roles.api(str(uuid.uuid4())).http, settings, "main")

    assert says["deployer"]["nomad acl"].message.endswith("may look, start replicas, deploy")
    assert says["router"]["nomad acl"].message.endswith("may look, start replicas")
    assert "may only look" in says["viewer"]["nomad acl"].message
    for seen in says.values():
        assert seen["namespace"].level == seen["nodes"].level == seen["driver"].level == "ok"
        assert seen["node vault"].level == "problem", "it has none"
        assert "-memory-oversubscription=true" in seen["memory"].fix
    assert "everything" in next(f for f in managing if f.check == "nomad acl").message
    assert "does not know this token" in unknown[-1].message
    assert (await roles.api(roles.management).jobs("*")).items == (), "looking registers nothing"


async def test_settings_of_a_real_node_are_seen_with_agent_read() -> None:
    if nomad_program() is None:
        pytest.skip("no nomad on PATH")
    async with NomadAgent(acl=True) as agent:
        roles = Roles(agent.address, agent.token, agent.node)
        fits = await nomad_checks(roles.api(agent.token).http, roles.settings, "main")
        longer = roles.settings.model_copy(update={"grace_period": 45.0})
        cut = await nomad_checks(roles.api(agent.token).http, longer, "main")
        scheduler = (await agent.calls.get("/v1/operator/scheduler/configuration"))["SchedulerConfig"]
        more = scheduler | {"MemoryOversubscriptionEnabled": True}
        await agent.calls.put("/v1/operator/scheduler/configuration", more)
        allowed = await nomad_checks(roles.api(agent.token).http, roles.settings, "main")
        await roles.close()

    assert next(found for found in fits if found.check == "agents").message == "settings of 1 nodes fit"
    assert "(30 s)" in next(found for found in cut if found.check == "agents").message
    assert [next(found for found in each if found.check == "memory").level for each in (fits, allowed)] == [
        "warning",
        "ok",
    ]


async def test_a_real_task_reads_its_environments_secrets_with_what_setup_made(openbao: OpenBao) -> None:
    if nomad_program() is None:
        pytest.skip("no nomad on PATH")
    mount, login = "kv-tasks", "jwt-tasks"
    identity = {"aud": ["vault.io"], "ttl": "1h"}
    stanza = {"enabled": True, "address": openbao.address, "jwt_auth_backend_path": login, "default_identity": identity}
    async with NomadAgent(acl=True, vault=stanza) as agent:
        roles = Roles(agent.address, agent.token, agent.node)
        vault = VaultSettings(address=openbao.address, token=SecretStr("root"), mount=mount, auth_mount=login)
        settings = Settings(nomad=roles.settings, vault=vault)
        environments = ["main", "staging"]
        made = set_up(settings, environments, router_job="modalnomad", only=["nomad", "vault"])
        steps = [step async for step in made]
        assert not [step for step in steps if step.outcome not in {"made", "changed", "there"}], steps
        store = VaultSecrets(vault)
        await store.create("db", "main", {"A": "1 < 2 & ü"})
        await store.close()
        api = roles.api(agent.token)

        told, failed = [
            await ended(api, reading(f"{mount}/data/modalnomad/main/db", namespace), namespace)
            for namespace in ("modalnomad-main", "modalnomad-staging")
        ]

        output = await api.tail(told["ID"], "app", "stdout", 1000, limit=5)
        assert json.loads(output) == {"A": "1 < 2 & ü"}
        assert told["ClientStatus"] == "complete"
        assert failed["ClientStatus"] == "failed"
        assert "nomad_namespace" in str(failed["TaskStates"]["app"]["Events"])
        seen = await nomad_checks(api.http, settings.nomad, "main")
        assert next(found for found in seen if found.check == "node vault").level == "ok"

        router, another = [
            await ended(
                api,
                reading(f"{mount}/data/modalnomad-platform/key", "modalnomad", id, "modalnomad-router"),
                "modalnomad",
            )
            for id in ("modalnomad-router", "another")
        ]
        assert router["ClientStatus"] == "complete"
        assert another["ClientStatus"] == "failed"
        assert "nomad_job_id" in str(another["TaskStates"]["app"]["Events"])
        await roles.close()


def reading(path: str, namespace: str, id: str = "reads", role: str = "modalnomad-main") -> dict[str, Any]:
    """A job whose task shows one secret, logging in with this role."""
    block = {"Role": role, "Env": False, "DisableFile": True, "ChangeMode": "noop"}
    template = {
        "EmbeddedTmpl": f'{{{{ with secret "{path}" }}}}{{{{ .Data.data | toJSON }}}}{{{{ end }}}}',
        "DestPath": "secrets/db.json",
        "Once": True,
        "ChangeMode": "noop",
    }
    found = job(id)
    del found["ParameterizedJob"]
    (group,) = found["TaskGroups"]
    (task,) = group["Tasks"]
    task |= {"Config": {"command": "/bin/cat", "args": ["${NOMAD_SECRETS_DIR}/db.json"]}}
    task |= {"Vault": block, "Templates": [template]}
    group["ReschedulePolicy"] = {"Attempts": 0, "Unlimited": False}
    return {**found, "Namespace": namespace}


async def ended(api: NomadApi, body: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Register it; its allocation, once that has ended."""
    await api.register({"Job": body})
    return await allocation(api, body["ID"], namespace, {"complete", "failed"})
