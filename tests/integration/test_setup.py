"""Setting up a cluster: on a real OpenBao, and on stand-ins for Nomad and Consul."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac.exceptions
import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.setup.platform import ServerName, platform, wanted
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.hashicorp.setup.steps import Step
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.model.errors import BackendRefused, UserError
from modalnomad.model.manifest import SecretRef
from modalnomad.render import cluster
from modalnomad.settings import ConsulSettings, NomadSettings, Settings, VaultSettings
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.openbao import OpenBao

ALLOCATION = {"ID": "11111111-2222-3333-4444-555555555555", "TaskGroup": cluster.GROUP}


@dataclass
class Cluster:
    """All three, and the settings that name them."""

    nomad: FakeNomad
    consul: FakeConsul
    bao: OpenBao
    settings: Settings

    async def set_up(self, *environments: str, **options: Any) -> list[Step]:
        return [step async for step in set_up(self.settings, environments or ("main",), **options)]

    async def login(self, environment: str, namespace: str) -> str:
        """Token of a task in `namespace` that takes the role of `environment`."""
        identity = self.nomad.signer.identity(ALLOCATION, {"Namespace": namespace, "ID": "a.f.r1"}, cluster.TASK)
        role = cluster.vault_role(environment)
        # Not on the loop: the server asks it for the keys.
        return await asyncio.to_thread(self.bao.login, role, identity, path=self.settings.vault.auth_mount)

    def secrets(self, token: str) -> VaultSecrets:
        return VaultSecrets(self.settings.vault.model_copy(update={"token": SecretStr(token)}))


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[OpenBao]:
    with OpenBao(tmp_path / "bao") as server:
        yield server


@pytest.fixture
async def servers(bao: OpenBao) -> AsyncIterator[Cluster]:
    async with FakeNomad(acl=True) as nomad, FakeConsul(acl=True) as consul:
        settings = Settings(
            nomad=NomadSettings(address=nomad.address, token=SecretStr(nomad.management)),
            consul=ConsulSettings(address=consul.address, token=SecretStr(consul.management)),
            vault=VaultSettings(address=bao.address, token=SecretStr("root"), mount="kv/modal"),
        )
        yield Cluster(nomad, consul, bao, settings)


def outcomes(steps: list[Step]) -> dict[tuple[str, str], str]:
    return {(step.server, step.what): step.outcome for step in steps}


async def test_all_is_made_once_and_is_there_the_second_time(servers: Cluster) -> None:
    first = await servers.set_up("main", "staging")
    index = servers.nomad.state.index
    second = await servers.set_up("main", "staging")

    assert {step.outcome for step in first} == {"made"}, first
    assert {step.outcome for step in second} == {"there"}, second
    assert list(outcomes(first)) == list(outcomes(second))
    assert {step.server for step in first} == {"nomad", "vault", "consul"}
    assert servers.nomad.state.index == index
    assert set(servers.nomad.state.namespaces) == {"default", "modalnomad-main", "modalnomad-staging"}


async def test_a_dry_run_writes_nothing_and_says_what_it_would_make(servers: Cluster) -> None:
    index = servers.nomad.state.index
    looked = await servers.set_up(dry=True)

    # What lies in a store that is not there yet cannot be looked at, but would be made.
    assert {step.outcome for step in looked} == {"would make"}, looked
    assert servers.nomad.state.index == index
    made = await servers.set_up()
    assert {step.outcome for step in made} == {"made"}
    assert list(outcomes(made)) == list(outcomes(looked))
    assert {step.outcome for step in await servers.set_up(dry=True)} == {"there"}


async def test_one_more_environment_makes_its_own_things_alone(servers: Cluster) -> None:
    await servers.set_up("main")
    steps = await servers.set_up("staging")

    made = {(step.server, step.what) for step in steps if step.outcome == "made"}
    assert made == {
        ("nomad", "namespace modalnomad-staging"),
        ("vault", "policy modalnomad-staging"),
        ("vault", "role modalnomad-staging"),
    }


async def test_what_somebody_changed_is_set_right_and_told(servers: Cluster) -> None:
    await servers.set_up()
    servers.nomad.state.policies["modalnomad-router"]["Rules"] = 'namespace "*" { policy = "write" }'
    servers.bao.policy("modalnomad-router", 'path "*" { capabilities = ["read"] }')
    with servers.bao.client() as client:
        role = client.read("auth/jwt-nomad/role/modalnomad-main")["data"]
        client.write_data("auth/jwt-nomad/role/modalnomad-main", data={**role, "bound_claims": {}, "user_claim": "aud"})
    for policy in servers.consul.acl.policies.values():
        if policy["Name"] == "modalnomad-router":
            policy["Rules"] = 'key_prefix "" { policy = "write" }'

    dry = await servers.set_up(dry=True)
    steps = await servers.set_up()

    changed = {(step.server, step.what): step.detail for step in steps if step.outcome == "changed"}
    assert set(changed) == {
        ("nomad", "policy modalnomad-router"),
        ("vault", "policy modalnomad-router"),
        ("vault", "role modalnomad-main"),
        ("consul", "policy modalnomad-router"),
    }
    assert "bound_claims, user_claim" in changed["vault", "role modalnomad-main"]
    assert {(s.server, s.what) for s in dry if s.outcome == "would change"} == set(changed)
    assert {step.outcome for step in await servers.set_up()} == {"there"}


async def test_without_acls_the_rest_is_made_and_that_is_said(bao: OpenBao) -> None:
    async with FakeNomad() as nomad, FakeConsul() as consul:
        settings = Settings(
            nomad=NomadSettings(address=nomad.address),
            consul=ConsulSettings(address=consul.address),
            vault=VaultSettings(address=bao.address, token=SecretStr("root")),
        )
        steps = [step async for step in set_up(settings, ["main"])]

    left = [step for step in steps if step.outcome == "left"]
    assert {step.server for step in left} == {"nomad", "consul"}
    assert all("ACLs are off" in step.detail and "acl" in step.fix for step in left)
    assert outcomes(steps)["nomad", "namespace modalnomad-main"] == "made"


@pytest.mark.parametrize("down", ["nomad", "vault", "consul"])
async def test_a_server_that_is_down_keeps_no_other_from_being_set_up(servers: Cluster, down: ServerName) -> None:
    nowhere = {"address": "http://127.0.0.1:9"}
    group = getattr(servers.settings, down)
    extra = {"jwks_url": f"{servers.nomad.address}/.well-known/jwks.json"}
    vault = servers.settings.vault.model_copy(update=extra)
    changed = servers.settings.model_copy(update={"vault": vault} | {down: group.model_copy(update=nowhere)})

    steps = [step async for step in set_up(changed, ["main"])]

    of_it = [step.outcome for step in steps if step.server == down]
    assert of_it[0] == "failed"
    assert set(of_it[1:]) == {"not done"}
    others = [step for step in steps if step.server != down]
    # Whose the namespace is has to be seen before its jobs get to its secrets.
    unsure = [step.what for step in others if step.outcome == "not done"]
    assert unsure == (["role modalnomad-main"] if down == "nomad" else [])
    assert {step.outcome for step in others if step.what not in unsure} == {"made"}
    assert next(step for step in steps if step.server == down).fix


async def test_keys_that_vault_cannot_read_fail_alone_and_the_next_run_goes_on(servers: Cluster) -> None:
    wrong = servers.settings.vault.model_copy(update={"jwks_url": "http://127.0.0.1:9/.well-known/jwks.json"})
    steps = [step async for step in set_up(servers.settings.model_copy(update={"vault": wrong}), ["main"])]

    (failed,) = [step for step in steps if step.outcome == "failed"]
    assert failed.what == "keys of login jwt-nomad"
    assert "http://127.0.0.1:9/.well-known/jwks.json" in failed.detail
    assert "vault.jwks_url" in failed.fix
    again = await servers.set_up()
    assert [step.what for step in again if step.outcome != "there"] == ["keys of login jwt-nomad"]


async def test_keys_from_elsewhere_are_left_unless_the_settings_say_so(servers: Cluster) -> None:
    await servers.set_up()
    async with FakeNomad() as other:
        derived = servers.settings.model_copy(update={"nomad": NomadSettings(address=other.address)})
        steps = [step async for step in set_up(derived, ["main"], only=["vault"])]
        url = f"{other.address}/.well-known/jwks.json"
        vault = servers.settings.vault.model_copy(update={"jwks_url": url})
        told = servers.settings.model_copy(update={"vault": vault})
        again = [step async for step in set_up(told, ["main"], only=["vault"])]

    (left,) = [step for step in steps if step.outcome == "left"]
    assert servers.nomad.address in left.detail
    assert url in left.fix
    assert outcomes(again)["vault", "keys of login jwt-nomad"] == "changed"


async def test_another_store_in_its_place_is_not_touched(servers: Cluster) -> None:
    with servers.bao.client() as client:
        client.sys.enable_secrets_engine("kv", path="kv/modal", options={"version": "1"})
        client.sys.enable_auth_method("userpass", path="jwt-nomad")
    steps = await servers.set_up(only=["vault"])

    failed = {step.what: step for step in steps if step.outcome == "failed"}
    assert "enable-versioning kv/modal" in failed["key-value store kv/modal"].fix
    assert "vault.auth_mount" in failed["login jwt-nomad"].fix
    with servers.bao.client() as client:
        assert client.sys.list_auth_methods()["data"]["jwt-nomad/"]["type"] == "userpass"


async def test_a_token_without_rights_is_told_at_each_step(servers: Cluster) -> None:
    poor = servers.bao.token(servers.bao.policy("nothing", 'path "nothing" { capabilities = ["read"] }'))
    vault = servers.settings.vault.model_copy(update={"token": SecretStr(poor)})
    steps = [step async for step in set_up(servers.settings.model_copy(update={"vault": vault}), ["main"])]

    of_vault = [step for step in steps if step.server == "vault"]
    assert {step.outcome for step in of_vault} == {"failed"}
    assert all("403" in step.detail or "does not let" in step.detail for step in of_vault)
    assert poor not in repr(steps)


async def test_a_bad_name_is_refused_before_anything_is_done(servers: Cluster) -> None:
    index = servers.nomad.state.index
    with pytest.raises(UserError):
        await servers.set_up("main", "No Good")

    assert servers.nomad.state.index == index


# --- rights --------------------------------------------------------------------------------------------------


async def test_a_task_reads_the_secrets_of_its_own_environment_alone(servers: Cluster) -> None:
    await servers.set_up("main", "main-2")
    store = servers.secrets("root")
    for environment in ("main", "main-2"):
        await store.create("db", environment, {"A": environment})
        await store.create_anonymous("a" * 64, environment, {"B": environment})
    await store.close()
    mount = servers.settings.vault.mount

    token = await servers.login("main", "modalnomad-main")

    with servers.bao.client(token) as client:
        for path in ("db", f"_anonymous/{'a' * 64}"):
            own = client.read(f"{mount}/data/modalnomad/main/{path}")
            assert "main" in own["data"]["data"].values()
            with pytest.raises(hvac.exceptions.Forbidden):
                client.read(f"{mount}/data/modalnomad/main-2/{path}")
        for path in ("data/modalnomad-platform/key", "metadata/modalnomad/main/db", "data/modalnomad/other/db"):
            with pytest.raises(hvac.exceptions.Forbidden):
                client.read(f"{mount}/{path}")
        with pytest.raises(hvac.exceptions.Forbidden):
            client.write_data(f"{mount}/data/modalnomad/main/db", data={"data": {"A": "changed"}})
        assert client.auth.token.renew_self()["auth"]["lease_duration"] == 1800


async def test_a_task_of_another_environment_cannot_log_in(servers: Cluster) -> None:
    await servers.set_up("main", "staging")

    with pytest.raises(hvac.exceptions.InvalidRequest, match="nomad_namespace"):
        await servers.login("main", "modalnomad-staging")
    with pytest.raises(hvac.exceptions.InvalidRequest):
        await servers.login("unknown", "modalnomad-main")


async def test_the_deployer_writes_and_lists_secrets_and_cannot_read_values(servers: Cluster) -> None:
    await servers.set_up()
    token = servers.bao.token("modalnomad-deployer")
    store = servers.secrets(token)

    await store.create("db", "main", {"A": "1"})
    await store.create("db", "main", {"A": "2", "B": "3"}, replace=True)
    await store.create_anonymous("a" * 64, "main", {"A": "1"})
    await store.check([SecretRef(name="db", required_keys=("A", "B")), SecretRef(anonymous="a" * 64)], "main")
    assert [info.keys for info in await store.list("main")] == [("A", "B")]
    with servers.bao.client(token) as client:
        with pytest.raises(hvac.exceptions.Forbidden):
            client.read("kv/modal/data/modalnomad/main/db")
        assert client.read("kv/modal/data/modalnomad-platform/key") is not None
        with pytest.raises(hvac.exceptions.Forbidden):
            client.write_data("kv/modal/data/modalnomad-platform/key", data={"data": {"key": "00"}})
    await store.delete("db", "main")
    await store.close()


async def test_the_router_sees_versions_and_neither_values_nor_keys(servers: Cluster) -> None:
    await servers.set_up()
    root = servers.secrets("root")
    await root.create("db", "main", {"A": "1"})
    await root.close()
    token = servers.bao.token("modalnomad-router")
    store = servers.secrets(token)

    assert await store.versions([SecretRef(name="db")], "main") == {"db": 1}
    with pytest.raises(BackendRefused, match="403"):
        await store.list("main")
    with pytest.raises(BackendRefused, match="403"):
        await store.create("db", "main", {"A": "2"}, replace=True)
    with pytest.raises(BackendRefused, match="403"):
        await store.delete("db", "main")
    await store.close()
    with servers.bao.client(token) as client, pytest.raises(hvac.exceptions.Forbidden):
        client.read("kv/modal/data/modalnomad/main/db")


# --- the command ---------------------------------------------------------------------------------------------


async def command(servers: Cluster, *arguments: str, **more: str) -> tuple[int, str, str]:
    """`modalnomad setup` → exit code, output, errors."""
    variables = {
        "NOMAD_ADDR": servers.nomad.address,
        "NOMAD_TOKEN": servers.nomad.management,
        "CONSUL_HTTP_ADDR": servers.consul.address,
        "CONSUL_HTTP_TOKEN": servers.consul.management,
        "VAULT_ADDR": servers.bao.address,
        "VAULT_TOKEN": "root",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modalnomad", "setup", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **variables, **more},
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


async def test_the_command_tells_each_step_and_how_to_make_tokens(servers: Cluster) -> None:
    dry = await command(servers, "--dry-run", "--env", "main", "--env", "staging")
    made = await command(servers, "--env", "main", "--env", "staging")
    again = await command(servers, "--json")

    assert [code for code, _, _ in (dry, made, again)] == [0, 0, 0]
    assert "namespace modalnomad-staging would make" in dry[1]
    assert "acl token create" not in dry[1]
    assert "role modalnomad-staging made" in made[1]
    assert "nomad acl token create -type client -policy modalnomad-deployer" in made[1]
    steps = [json.loads(line) for line in again[1].splitlines()]
    assert {step["outcome"] for step in steps} == {"there"}
    assert not [step for step in steps if "staging" in step["what"]]
    assert servers.consul.management not in str((dry, made, again))


async def test_the_command_prepares_for_routers_that_are_a_job(servers: Cluster) -> None:
    bad = await command(servers, "--router-job", "modalnomad-main")
    made = await command(servers, "--router-job", "modalnomad")
    again = await command(servers, "--router-job", "modalnomad", "--json")

    assert bad[0] == 1
    assert "could replace the routers" in bad[2]
    assert "such as modalnomad" in bad[2]
    assert (made[0], again[0]) == (0, 0)
    for what in ("namespace modalnomad made", "policy modalnomad-router-job made", "role modalnomad-router made"):
        assert what in made[1]
    assert {json.loads(line)["outcome"] for line in again[1].splitlines()} == {"there"}


async def test_the_command_fails_when_a_step_does(servers: Cluster) -> None:
    servers.nomad.faults.refuse("/v1/namespace/modalnomad-main")
    code, output, errors = await command(servers, "--only", "nomad")

    assert code == 1
    assert "namespace modalnomad-main failed" in output
    assert "No cluster leader" in output
    assert "policy modalnomad-router made" in output
    assert "Traceback" not in errors


async def test_what_many_steps_were_refused_for_is_told_once(servers: Cluster) -> None:
    wrong = {"NOMAD_TOKEN": "", "CONSUL_HTTP_TOKEN": "", "VAULT_TOKEN": ""}
    code, output, _ = await command(servers, **wrong)
    _, lines, _ = await command(servers, "--json", **wrong)

    assert code == 1
    steps = [json.loads(line) for line in lines.splitlines()]
    hints = Counter(step["fix"] for step in steps if step["fix"])
    assert max(hints.values()) > 3, "programs get it with each step"
    told = " ".join(output.split())
    for hint in hints:
        assert told.count(f"→ {hint}") == 1
    assert output.count(" failed: ") == sum(step["outcome"] == "failed" for step in steps)


# --- the data file -------------------------------------------------------------------------------------------


def test_the_data_file_names_things_as_the_rest_does() -> None:
    settings = Settings()
    needed = wanted(settings, ["main"])

    assert list(needed.namespaces) == [cluster.namespace_of("main")]
    assert list(needed.roles) == [cluster.vault_role("main")]
    role = needed.roles[cluster.vault_role("main")]
    assert role["bound_claims"] == {"nomad_namespace": cluster.namespace_of("main")}
    assert role["bound_audiences"] == [cluster.VAULT_AUDIENCE]
    assert role["user_claim"] == "sub"
    for policy in needed.consul_policies[:2]:
        assert set(policy.rules["service"]) == {cluster.REPLICA_SERVICE, cluster.ROUTER_SERVICE}


def test_no_placeholder_is_left_and_every_right_has_its_reason() -> None:
    needed = wanted(Settings(), ["main"])

    assert "${" not in repr(needed)
    policies = (*needed.nomad_policies, *needed.vault_policies, *needed.consul_policies)
    assert max(Counter(id(policy) for policy in policies).values()) == 1
    for policy in policies:
        assert all(policy.why.values())
    for policy in needed.vault_policies:
        assert set(policy.why) == set(policy.rules["path"])
    for policy in needed.nomad_policies:
        assert set(policy.why) - {"node: read"} == set(policy.rules["namespace"]["modalnomad-*"]["capabilities"])


def test_the_data_file_is_as_terraform_reads_it() -> None:
    """Only texts, numbers, lists and objects; JSON with nothing of our own in it."""
    assert json.loads(json.dumps(platform())) == platform()
    assert platform()["format"] == 1
