"""What `setup` makes in Consul for routers that run as a job, and whom it lets in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.hashicorp.setup.steps import Step
from modalnomad.settings import ConsulSettings, NomadSettings, Settings, VaultSettings
from tests.support.consul import Consul, fake_consul
from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.server import FakeNomad

ALLOCATION = {"ID": "11111111-2222-3333-4444-555555555555", "TaskGroup": "router"}
JOB = {"Namespace": "modalnomad", "ID": "modalnomad-router"}
METHOD = "nomad-workloads"


@dataclass
class Place:
    """A Consul with ACLs, and a Nomad that shows its keys."""

    consul: Consul
    nomad: FakeNomad

    def settings(self, **vault: Any) -> Settings:
        return Settings(
            consul=ConsulSettings(address=self.consul.address, token=SecretStr(self.consul.fake.management)),
            nomad=NomadSettings(address=self.nomad.address),
            vault=VaultSettings(**vault),
        )

    async def set_up(self, *, dry: bool = False, **vault: Any) -> list[Step]:
        found = set_up(self.settings(**vault), (), router_job="modalnomad", only=["consul"], dry=dry)
        return [step async for step in found]

    async def call(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Raises ServerRefused."""
        secret = self.consul.fake.management if token is None else token
        return (await self.consul.api(secret).http.request(method, f"/v1/acl/{path}", data=body)).json()

    async def login(self, job: Mapping[str, str] = JOB, signer: Signer | None = None, **identity: Any) -> str:
        """The token of who runs as `job`. Raises ServerRefused."""
        claims = {"name": "consul_default", "audience": ("consul.io",)} | identity
        signed = (signer or self.nomad.signer).identity(ALLOCATION, job, "router", **claims)
        made = await self.call("POST", "login", {"AuthMethod": METHOD, "BearerToken": signed}, "")
        return str(made["SecretID"])


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with FakeNomad() as nomad, fake_consul(acl=True) as consul:
        yield Place(consul, nomad)


def told(steps: list[Step]) -> dict[str, str]:
    return {step.what: step.outcome for step in steps if not step.what.startswith("policy")}


def step(steps: list[Step], beginning: str) -> Step:
    (found,) = [one for one in steps if one.what.startswith(beginning)]
    return found


async def test_all_is_made_once_and_is_there_the_second_time(place: Place) -> None:
    looked = await place.set_up(dry=True)
    assert not place.consul.fake.acl.methods
    first, index = await place.set_up(), place.consul.fake.acl.index
    second = await place.set_up()

    assert {one.outcome for one in looked} == {"would make"}
    assert {one.outcome for one in first} == {"made"}, first
    assert {one.outcome for one in second} == {"there"}, second
    assert place.consul.fake.acl.index == index
    assert [one.what for one in looked] == [one.what for one in first] == [one.what for one in second]
    assert list(told(first)) == [
        "auth method nomad-workloads",
        "role modalnomad-router",
        "binding rule of nomad-workloads to modalnomad-router",
    ]
    assert (await place.call("GET", f"auth-method/{METHOD}"))["Config"]["JWKSURL"].startswith(place.nomad.address)


async def test_without_a_router_s_job_there_is_no_login(place: Place) -> None:
    steps = [one async for one in set_up(place.settings(), ("main",), only=["consul"])]

    assert told(steps) == {}
    assert not place.consul.fake.acl.methods


async def test_the_router_s_job_logs_in_with_the_rights_of_routers_alone(place: Place) -> None:
    await place.set_up()
    api = place.consul.api(await place.login())

    await api.tree("modalnomad/")
    assert await api.put("modalnomad/routers/r1", b"{}")
    with pytest.raises(ServerRefused, match="key:write"):
        await api.put("modalnomad/apps/main/a", b"{}")
    with pytest.raises(ServerRefused, match="key:read"):
        await api.get("other")


@pytest.mark.parametrize(
    "job", [{"Namespace": "modalnomad-main", "ID": "modalnomad-router"}, {"Namespace": "modalnomad", "ID": "other"}]
)
async def test_another_job_gets_no_token(place: Place, job: Mapping[str, str]) -> None:
    await place.set_up()

    with pytest.raises(ServerRefused, match="403: Permission denied"):
        await place.login(job)


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        ({"audience": ("vault.io",)}, "aud claim does not match any bound audience"),
        ({"ttl": -3600.0}, r"token is expired \(exp\)"),
        ({"signer": Signer()}, "failed to verify id token signature"),
    ],
)
async def test_an_identity_that_is_not_for_consul_now_or_not_of_nomad_gets_no_token(
    place: Place, identity: dict[str, Any], text: str
) -> None:
    await place.set_up()

    with pytest.raises(ServerRefused, match=text):
        await place.login(**identity)


async def test_what_somebody_changed_is_set_right_and_what_is_others_stays(place: Place) -> None:
    await place.set_up()
    acl = place.consul.fake.acl
    (role,), (rule,) = acl.roles.values(), acl.bindings.values()
    other = await place.call("PUT", "binding-rule", {"AuthMethod": METHOD, "BindType": "service", "BindName": "x"})
    await place.call("PUT", f"role/{role['ID']}", {"Name": role["Name"], "ServiceIdentities": [{"ServiceName": "web"}]})
    await place.call("PUT", f"binding-rule/{rule['ID']}", {**rule, "Selector": ""})

    dry, steps = await place.set_up(dry=True), await place.set_up()

    changed, rule_step = step(steps, "role"), step(steps, "binding rule")
    assert (changed.outcome, changed.detail) == ("changed", "different: Policies, ServiceIdentities, Description")
    assert (rule_step.outcome, rule_step.detail) == ("changed", "different: Selector")
    assert {step(dry, kind).outcome for kind in ("role", "binding rule")} == {"would change"}
    assert await place.call("GET", f"binding-rule/{other['ID']}") == other
    assert acl.bindings[rule["ID"]]["Selector"] == rule["Selector"]
    assert {one.outcome for one in await place.set_up()} == {"there"}


async def test_each_binding_rule_of_ours_is_set_right(place: Place) -> None:
    await place.set_up()
    acl = place.consul.fake.acl
    (rule,) = acl.bindings.values()
    second = {name: value for name, value in rule.items() if name != "ID"}
    await place.call("PUT", "binding-rule", {**second, "Selector": 'value.nomad_namespace == "before"'})

    assert step(await place.set_up(), "binding rule").outcome == "changed"
    assert [one["Selector"] for one in acl.bindings.values()] == [rule["Selector"]] * 2
    assert step(await place.set_up(), "binding rule").outcome == "there"


async def test_a_policy_of_this_name_that_is_somebody_else_s_is_left_and_told(place: Place) -> None:
    mine = await place.call("PUT", "policy", {"Name": "modalnomad-router", "Rules": 'operator = "read"'})

    failed = step(await place.set_up(), "policy modalnomad-router")

    assert failed.outcome == "failed"
    assert "there is another policy of this name" in failed.detail
    assert "consul acl policy delete -name modalnomad-router" in failed.fix
    assert await place.call("GET", f"policy/{mine['ID']}") == mine


def method(place: Place, **changed: Any) -> dict[str, Any]:
    """An auth method that would do, but for what is `changed`."""
    claims = {claim: claim for claim in ("nomad_namespace", "nomad_job_id", "nomad_task")}
    config = {
        "JWKSURL": f"{place.nomad.address}/.well-known/jwks.json",
        "BoundAudiences": ["consul.io"],
        "ClaimMappings": claims,
    }
    description = changed.pop("Description", "")
    return {"Name": METHOD, "Type": "jwt", "Config": config | changed, "Description": description}


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"BoundAudiences": ["other"]}, "it takes identities for other, not for consul.io"),
        ({"BoundAudiences": []}, "it takes identities for nobody, not for consul.io"),
        (
            {"ClaimMappings": {"nomad_job_id": "job"}},
            "its ClaimMappings lack nomad_namespace, nomad_job_id, nomad_task",
        ),
    ],
)
async def test_an_auth_method_that_would_not_do_is_left_and_told(
    place: Place, changed: dict[str, Any], detail: str
) -> None:
    there = await place.call("PUT", "auth-method", method(place, **changed))

    steps = await place.set_up()

    left = step(steps, "auth method")
    assert (left.outcome, left.detail) == ("left", detail)
    assert "consul.auth_method" in left.fix
    assert await place.call("GET", f"auth-method/{METHOD}") == there
    assert set(told(steps).values()) == {"left", "made"}


async def test_an_auth_method_that_is_there_is_used(place: Place) -> None:
    there = await place.call("PUT", "auth-method", method(place, Description="theirs"))

    assert step(await place.set_up(), "auth method").outcome == "there"
    assert await place.call("GET", f"auth-method/{METHOD}") == there
    assert await place.login()


async def test_keys_from_elsewhere_count_only_against_an_address_that_was_given(place: Place) -> None:
    await place.set_up()
    elsewhere = "http://nomad.internal:4646/.well-known/jwks.json"

    left = step(await place.set_up(jwks_url=elsewhere), "auth method")

    assert left.outcome == "left"
    assert left.detail == f"it has its keys from {place.nomad.address}/.well-known/jwks.json, not from {elsewhere}"


async def test_keys_that_consul_cannot_read_are_told_and_the_next_run_ends_what_was_begun(place: Place) -> None:
    nowhere = "http://127.0.0.1:1/.well-known/jwks.json"

    steps = await place.set_up(jwks_url=nowhere)

    failed = step(steps, "auth method")
    assert failed.outcome == "failed"
    assert f"Consul cannot read Nomad's public keys at {nowhere}" in failed.detail
    assert "vault.jwks_url" in failed.fix
    assert told(steps)["role modalnomad-router"] == "made"
    assert {one.outcome for one in await place.set_up()} == {"made", "there"}
    assert await place.login()


async def test_where_acls_are_off_all_is_left_and_told() -> None:
    async with FakeNomad() as nomad, fake_consul() as consul:
        steps = await Place(consul, nomad).set_up()

    assert {one.outcome for one in steps} == {"left"}
    assert len(told(steps)) == 3
