"""Setting up where something is in the way: things that are somebody else's, and tokens that may too little. On a real
OpenBao; on the fake Nomad and a real one."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.setup.platform import filled
from modalnomad.hashicorp.setup.rights import VAULT_NEEDED
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.hashicorp.setup.steps import Step
from modalnomad.settings import NomadSettings, Settings, VaultSettings
from tests.support.nomads import KINDS, Nomad, opened
from tests.support.openbao import OpenBao

CLIENT = 'namespace "*" { policy = "read" }'


@dataclass
class Place:
    """A Nomad with ACLs, and a part of an OpenBao of its own."""

    nomad: Nomad
    bao: OpenBao
    mount: str
    token: str | None = None
    """Nomad's, in place of management."""
    vault_token: str = "root"

    @property
    def settings(self) -> Settings:
        calls = self.nomad.calls
        token = calls.token if self.token is None else self.token
        return Settings(
            nomad=NomadSettings(address=calls.address, token=SecretStr(token)),
            vault=VaultSettings(
                address=self.bao.address,
                token=SecretStr(self.vault_token),
                mount=self.mount,
                auth_mount=f"jwt-{self.mount}",
            ),
        )

    async def set_up(self, *environments: str, **options: Any) -> dict[str, Step]:
        """By server and what it was."""
        steps = set_up(self.settings, environments, **{"only": ["nomad", "vault"]} | options)
        return {f"{step.server} {step.what}": step async for step in steps}

    async def get(self, path: str) -> Mapping[str, Any]:
        """Of Nomad."""
        found: Mapping[str, Any] = await self.nomad.calls.get(path)
        return found

    def role(self, name: str) -> Mapping[str, Any] | None:
        """Of Vault."""
        with self.bao.client() as client:
            found = client.read(f"auth/jwt-{self.mount}/role/{name}")
        return None if found is None else dict(found["data"])


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, openbao: OpenBao) -> AsyncIterator[Place]:
    mount = f"kv-{uuid.uuid4().hex[:8]}"
    async with opened(request.param, acl=True) as nomad:
        yield Place(nomad, openbao, mount)


def outcomes(steps: Mapping[str, Step]) -> dict[str, str]:
    """Of those that were not there, and not shared with other tests."""
    return {
        what: step.outcome for what, step in steps.items() if step.outcome != "there" and "vault policy" not in what
    }


# --- routers as a job ----------------------------------------------------------------------------------------


async def test_what_routers_need_to_run_as_a_job_is_made_once_and_set_right(place: Place) -> None:
    looked = await place.set_up(router_job="modalnomad", dry=True)
    first = await place.set_up(router_job="modalnomad")
    second = await place.set_up(router_job="modalnomad")

    own = {"nomad namespace modalnomad", "nomad policy modalnomad-router-job", "vault role modalnomad-router"}
    assert own <= set(first)
    assert {first[what].outcome for what in own} == {"made"}
    assert {looked[what].outcome for what in own} == {"would make"}
    assert {step.outcome for step in second.values()} == {"there"}
    made = await place.get("/v1/acl/policy/modalnomad-router-job")
    assert made["JobACL"] == {"Namespace": "modalnomad", "JobID": "modalnomad-router", "Group": "", "Task": ""}
    assert made["Rules"] == (await place.get("/v1/acl/policy/modalnomad-router"))["Rules"]
    role = place.role("modalnomad-router")
    assert role is not None
    assert role["bound_claims"] == {"nomad_namespace": "modalnomad", "nomad_job_id": "modalnomad-router"}

    # In another namespace, or for every job after somebody's hand.
    for changed in (made["JobACL"] | {"Namespace": "default"}, made["JobACL"] | {"JobID": ""}):
        body = {key: made[key] for key in ("Name", "Description", "Rules")} | {"JobACL": changed}
        await place.nomad.calls.put("/v1/acl/policy/modalnomad-router-job", body)
        again = await place.set_up(router_job="modalnomad")
        assert outcomes(again) == {"nomad policy modalnomad-router-job": "changed"}
        assert "job" in again["nomad policy modalnomad-router-job"].detail
        assert (await place.get("/v1/acl/policy/modalnomad-router-job"))["JobACL"] == made["JobACL"]


async def test_without_a_namespace_for_them_nothing_of_theirs_is_made(place: Place) -> None:
    steps = await place.set_up("main")

    assert not [
        what for what in steps if what.endswith(("namespace modalnomad", "-router-job", "role modalnomad-router"))
    ]
    assert place.role("modalnomad-router") is None


async def test_a_namespace_that_was_there_is_used_for_routers_and_that_is_said(place: Place) -> None:
    await place.nomad.calls.put("/v1/namespace/ops", {"Name": "ops", "Description": "what keeps us running"})
    index = (await place.get("/v1/namespace/ops"))["ModifyIndex"]
    steps = await place.set_up(router_job="ops")

    left = steps["nomad namespace ops"]
    assert left.outcome == "left"
    assert "what keeps us running" in left.detail
    assert "can replace the routers" in left.fix
    assert (await place.get("/v1/namespace/ops"))["ModifyIndex"] == index
    assert steps["vault role modalnomad-router"].outcome == "made"


# --- somebody else's -----------------------------------------------------------------------------------------


def unusable(place: Place, way: str, folder: Path) -> Settings:
    """Nomad tells nothing with these."""
    wrong: dict[str, dict[str, Any]] = {
        "token": {"token": SecretStr(str(uuid.uuid4()))},
        "address": {"address": "http://127.0.0.1:1"},
        "file": {"token_file": folder / "none"},
    }
    return place.settings.model_copy(update={"nomad": place.settings.nomad.model_copy(update=wrong[way])})


@pytest.mark.parametrize("way", ["token", "address", "file"])
async def test_a_namespace_that_nobody_could_look_at_gets_no_rights(place: Place, way: str, tmp_path: Path) -> None:
    settings = unusable(place, way, tmp_path)
    steps = [step async for step in set_up(settings, ["main", "staging"], only=["nomad", "vault"])]

    for name in ("modalnomad-main", "modalnomad-staging"):
        (role,) = [step for step in steps if step.what == f"role {name}"]
        assert (role.outcome, role.detail) == (
            "not done",
            f"the namespace {name} may be somebody else's: Nomad did not tell",
        )
        assert place.role(name) is None
    assert "made" in {step.outcome for step in steps if step.server == "vault"}


@pytest.mark.parametrize("description", ["Team A's own", "modalnomad-main: of team A", ""])
async def test_another_namespace_of_an_environments_name_is_no_environment(place: Place, description: str) -> None:
    name = "modalnomad-main"
    await place.nomad.calls.put(f"/v1/namespace/{name}", {"Name": name, "Description": description})
    for dry in (True, False):
        steps = await place.set_up("main", "staging", dry=dry)

        refused, role = steps[f"nomad namespace {name}"], steps[f"vault role {name}"]
        assert refused.outcome == "failed"
        assert (description or "without a description") in refused.detail
        assert "nomad namespace apply -description 'modalnomad, environment main' modalnomad-main" in refused.fix
        # Its jobs could log in with it.
        assert (role.outcome, role.detail) == ("not done", "the namespace modalnomad-main is somebody else's")
        assert steps["vault role modalnomad-staging"].outcome == ("would make" if dry else "made")
    assert place.role(name) is None
    assert (await place.get(f"/v1/namespace/{name}"))["Description"] == description

    # As the command does that was told; then as another release would word it.
    await place.nomad.calls.put(f"/v1/namespace/{name}", {"Name": name, "Description": "modalnomad, environment main"})
    assert outcomes(await place.set_up("main", "staging")) == {f"vault role {name}": "made"}
    worded = {"Name": name, "Description": "modalnomad: main", "Meta": {"team": "a"}}
    await place.nomad.calls.put(f"/v1/namespace/{name}", worded)
    assert outcomes(await place.set_up("main", "staging")) == {f"nomad namespace {name}": "changed"}
    now = await place.get(f"/v1/namespace/{name}")
    assert (now["Description"], now["Meta"]) == ("modalnomad, environment main", {"team": "a"})


async def test_vault_alone_gives_no_rights_to_another_namespace_of_an_environments_name(place: Place) -> None:
    name = "modalnomad-main"
    await place.nomad.calls.put(f"/v1/namespace/{name}", {"Name": name, "Description": "Team A's own"})
    for dry in (True, False):
        steps = await place.set_up("main", "staging", only=["vault"], dry=dry)

        told = [step for step in steps.values() if step.server == "nomad"]
        assert [(step.what, step.outcome) for step in told] == [(f"namespace {name}", "failed")]
        assert "nomad namespace apply" in told[0].fix
        role = steps[f"vault role {name}"]
        assert (role.outcome, role.detail) == ("not done", "the namespace modalnomad-main is somebody else's")
        assert steps["vault role modalnomad-staging"].outcome == ("would make" if dry else "made")
    assert place.role(name) is None
    assert (await place.get(f"/v1/namespace/{name}"))["Description"] == "Team A's own"
    assert "modalnomad-staging" not in {one["Name"] for one in await place.nomad.calls.get("/v1/namespaces")}


@pytest.mark.parametrize("way", ["token", "address", "file"])
async def test_vault_alone_is_prepared_where_nomad_does_not_tell_and_that_is_said(
    place: Place, way: str, tmp_path: Path
) -> None:
    settings = unusable(place, way, tmp_path)
    steps = [step async for step in set_up(settings, ["main", "staging"], only=["vault"])]

    names = ("modalnomad-main", "modalnomad-staging")
    left = [step for step in steps if step.server == "nomad"]
    assert [(step.what, step.outcome) for step in left] == [(f"namespace {name}", "left") for name in names]
    assert all(step.detail.startswith("whose it is was not looked at") for step in left)
    assert all(place.role(name) is not None for name in names)


async def test_another_policy_of_our_name_is_left_and_ours_is_repaired(place: Place) -> None:
    name = "modalnomad-viewer"
    theirs = {"Name": name, "Description": "sees everything", "Rules": 'namespace "*" { policy = "read" }'}
    await place.nomad.calls.put(f"/v1/acl/policy/{name}", theirs)
    step = (await place.set_up(only=["nomad"]))[f"nomad policy {name}"]

    assert step.outcome == "failed"
    assert "sees everything" in step.detail
    assert f"nomad acl policy delete {name}" in step.fix
    assert (await place.get(f"/v1/acl/policy/{name}"))["Rules"] == theirs["Rules"]

    await place.nomad.calls.call("DELETE", f"/v1/acl/policy/{name}")
    assert outcomes(await place.set_up(only=["nomad"])) == {f"nomad policy {name}": "made"}
    ours = await place.get(f"/v1/acl/policy/{name}")
    for changed, detail in (
        ({"Rules": theirs["Rules"]}, "its rules were different"),
        ({"Rules": theirs["Rules"], "Description": "modalnomad: as it was"}, "its rules were different"),
        ({"Description": "somebody wrote here"}, "its description was different"),
    ):
        body = {"Name": name, "Description": ours["Description"], "Rules": ours["Rules"]} | changed
        await place.nomad.calls.put(f"/v1/acl/policy/{name}", body)
        step = (await place.set_up(only=["nomad"]))[f"nomad policy {name}"]
        assert (step.outcome, step.detail) == ("changed", detail)
        now = await place.get(f"/v1/acl/policy/{name}")
        assert (now["Description"], now["Rules"]) == (ours["Description"], ours["Rules"])


async def test_a_store_and_a_login_that_were_there_are_used_and_that_is_said(openbao: OpenBao) -> None:
    async with opened("fake") as nomad:
        place = Place(nomad, openbao, f"kv-{uuid.uuid4().hex[:8]}")
        with openbao.client() as client:
            client.sys.enable_secrets_engine("kv", path=place.mount, description="a team's", options={"version": "2"})
            client.sys.enable_auth_method("jwt", path=f"jwt-{place.mount}")
        steps = await place.set_up(only=["vault"])

    store, login = steps[f"vault key-value store {place.mount}"], steps[f"vault login jwt-{place.mount}"]
    assert store.outcome == login.outcome == "there"
    assert store.detail == 'not made by this command ("a team\'s"), used as it is'
    assert "no description" in login.detail


# --- rights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["none", "unknown", "client"])
async def test_a_token_of_nomad_that_may_too_little_is_told_what_is_needed(place: Place, given: str) -> None:
    """A Nomad whose ACLs were never bootstrapped gives the same answers, to no token and to any."""
    token = {"none": "", "unknown": str(uuid.uuid4())}.get(given)
    if token is None:
        await place.nomad.calls.put("/v1/acl/policy/looks", {"Name": "looks", "Rules": CLIENT})
        body = {"Name": "one", "Type": "client", "Policies": ["looks"]}
        token = (await place.nomad.calls.put("/v1/acl/token", body))["SecretID"]
    steps = await replace(place, token=token).set_up("main", only=["nomad"])

    for step in steps.values():
        assert step.outcome == "failed", step
        assert "403" in step.detail
        assert "`setup` needs a management token" in step.fix
        assert "NOMAD_TOKEN (nomad.token)" in step.fix
        if given == "client":
            assert "has the policies looks" in step.fix
        else:
            assert "`nomad acl bootstrap` makes the first" in step.fix
            assert ("no token is given" in step.fix) == (given == "none")
    assert not token or token not in repr(steps)


async def test_the_policy_for_setting_up_is_enough_and_what_is_missing_is_named(openbao: OpenBao) -> None:
    async with opened("fake") as nomad:
        place = Place(nomad, openbao, f"kv-{uuid.uuid4().hex[:8]}")
        needed = filled(VAULT_NEEDED, {"mount": place.mount, "auth_mount": f"jwt-{place.mount}"})

        async def with_rights(rights: Mapping[str, str]) -> dict[str, Step]:
            text = json.dumps({"path": {path: {"capabilities": some.split(", ")} for path, some in rights.items()}})
            name = openbao.policy(f"sets-up-{place.mount}", text)
            return await replace(place, vault_token=openbao.token(name, "default")).set_up("main", only=["vault"])

        made_by = {
            f"sys/mounts/{place.mount}": f"vault key-value store {place.mount}",
            f"sys/auth/jwt-{place.mount}": f"vault login jwt-{place.mount}",
        }
        poor = await with_rights({path: some for path, some in needed.items() if path not in made_by})
        for path, what in made_by.items():
            assert poor[what].outcome == "failed"
            assert f"must allow {needed[path]} on {path}" in poor[what].fix
            assert "VAULT_TOKEN (vault.token)" in poor[what].fix
            assert "does not know" not in poor[what].fix
        steps = await with_rights(needed)
        again = await with_rights(needed)

    assert {step.outcome for step in steps.values()} <= {"made", "changed", "there"}, steps
    assert steps["vault role modalnomad-main"].outcome == "made"
    assert {step.outcome for step in again.values()} == {"there"}


async def test_a_token_that_vault_does_not_know_is_told_so(openbao: OpenBao) -> None:
    async with opened("fake") as nomad:
        place = Place(nomad, openbao, f"kv-{uuid.uuid4().hex[:8]}", vault_token="s.unknown")
        steps = await place.set_up(only=["vault"])

    assert {step.outcome for step in steps.values()} == {"failed"}
    assert all(step.fix.startswith("Vault does not know this token") for step in steps.values())


async def test_who_gives_vault_no_token_is_told_only_that(openbao: OpenBao) -> None:
    async with opened("fake") as nomad:
        place = Place(nomad, openbao, f"kv-{uuid.uuid4().hex[:8]}", vault_token="")
        steps = await place.set_up(only=["vault"])

    assert {step.fix for step in steps.values() if step.outcome == "failed"} == {
        "no token is given: VAULT_TOKEN (vault.token)"
    }


async def test_a_role_as_terraform_writes_it_is_as_it_should_be(openbao: OpenBao) -> None:
    async with opened("fake") as nomad:
        place = Place(nomad, openbao, f"kv-{uuid.uuid4().hex[:8]}")
        await place.set_up("main", only=["vault"])
        role = dict(place.role("modalnomad-main") or {})
        path = f"auth/jwt-{place.mount}/role/modalnomad-main"
        for claims, outcome in (
            ({"nomad_namespace": ["modalnomad-main"]}, "there"),
            ({"nomad_namespace": []}, "changed"),
        ):
            with openbao.client() as client:
                client.write_data(path, data=role | {"bound_claims": claims})
            assert (place.role("modalnomad-main") or {})["bound_claims"] == claims
            steps = await place.set_up("main", only=["vault"])
            assert steps["vault role modalnomad-main"].outcome == outcome


async def test_a_login_left_half_made_is_finished(openbao: OpenBao) -> None:
    """Vault asks Nomad for its keys when they are configured: with Nomad away, the mount stays without."""
    async with opened("fake") as nomad:
        place = Place(nomad, openbao, f"kv-{uuid.uuid4().hex[:8]}")
        assert nomad.fake is not None
        async with nomad.fake.away():
            first = await place.set_up("main", only=["vault"])
        login = f"jwt-{place.mount}"
        with openbao.client() as client:
            assert f"{login}/" in client.sys.list_auth_methods()["data"]
            assert client.read(f"auth/{login}/config") is None
        second = await place.set_up("main", only=["vault"])

    keys = first[f"vault keys of login {login}"]
    assert (keys.outcome, first[f"vault login {login}"].outcome) == ("failed", "made")
    assert "with Nomad's servers running" in keys.fix
    assert outcomes(second) == {f"vault keys of login {login}": "made"}
