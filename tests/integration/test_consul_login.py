"""Logins to the stand-in for Consul, as Consul has them; and a real Nomad that logs a task in and out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.consul.login import LoginRenewal
from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.settings import ConsulSettings, NomadSettings, Settings
from tests.support.consul import Consul, fake_consul, until
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.nomad_agent import NomadAgent, nomad_program

ALLOCATION = {"ID": "11111111-2222-3333-4444-555555555555", "TaskGroup": "g"}
CLAIMS = {"nomad_namespace": "space", "nomad_job_id": "job"}


class Acls:
    """Calls of the ACL API."""

    def __init__(self, consul: Consul) -> None:
        self.consul = consul

    async def call(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Raises ServerRefused."""
        secret = self.consul.fake.management if token is None else token
        return (await self.consul.api(secret).http.request(method, f"/v1/acl/{path}", data=body)).json()

    async def refused(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, str]:
        """Status and text."""
        with pytest.raises(ServerRefused) as told:
            await self.call(method, path, body, token)
        return told.value.status, told.value.text

    async def rule(self, **fields: str) -> Any:
        return await self.call("PUT", "binding-rule", {"AuthMethod": "m", **fields})

    async def login(self, signer: Signer, job: str = "j", **meta: str) -> Any:
        signed = signer.identity(ALLOCATION, {"Namespace": "n", "ID": job}, "t", audience=("consul.io",))
        return await self.call("POST", "login", {"AuthMethod": "m", "BearerToken": signed, "Meta": meta}, "")


async def method(acls: Acls, nomad: FakeNomad, **more: Any) -> Any:
    config = {
        "JWKSURL": f"{nomad.address}/.well-known/jwks.json",
        "BoundAudiences": ["consul.io"],
        "ClaimMappings": CLAIMS,
    }
    return await acls.call("PUT", "auth-method", {"Name": "m", "Type": "jwt", "Config": config, **more})


async def test_a_login_has_what_each_rule_that_fits_binds_and_a_logout_ends_it() -> None:
    async with FakeNomad() as nomad, fake_consul(acl=True) as consul:
        acls = Acls(consul)
        policy = await acls.call("PUT", "policy", {"Name": "reads", "Rules": 'key_prefix "a/" { policy = "read" }'})
        role = await acls.call("PUT", "role", {"Name": "reader", "Policies": [{"Name": "reads"}]})
        await method(acls, nomad)
        await acls.rule(BindType="role", BindName="reader", Selector='value.space == "n" and value.job != "other"')
        await acls.rule(
            BindType="service", BindName="${value.job}-web", Selector='"x" in list.none or value.job == "j"'
        )
        await acls.rule(BindType="policy", BindName="none-of-this-name")

        made = await acls.login(nomad.signer, requested_by="nomad_task_t")

        assert made["Roles"] == [{"ID": role["ID"], "Name": "reader"}]
        assert made["ServiceIdentities"] == [{"ServiceName": "j-web"}]
        assert (made["AuthMethod"], made["Local"], made["Policies"]) == ("m", True, [])
        assert made["Description"] == 'token created via login: {"requested_by":"nomad_task_t"}'
        assert policy["Hash"]
        api = consul.api(made["SecretID"])
        await api.tree("a/")
        await api.http.request("PUT", "/v1/agent/service/register", data={"Name": "j-web"})
        assert await acls.refused("GET", "tokens", token=made["SecretID"]) == (
            403,
            f"Permission denied: token with AccessorID '{made['AccessorID']}' lacks permission 'acl:read'",
        )

        assert await acls.call("POST", "logout", token=made["SecretID"]) is True
        assert await acls.refused("POST", "logout", token=made["SecretID"]) == (401, "Supplied token does not exist")
        assert await acls.refused("GET", "token/self", token=made["SecretID"]) == (404, "Supplied token does not exist")
        assert (await acls.refused("POST", "logout"))[0] == 403
        assert await acls.refused("GET", "policies", token=made["SecretID"]) == (403, "ACL not found")


async def test_the_end_of_an_auth_method_is_that_of_its_rules_and_tokens() -> None:
    async with FakeNomad() as nomad, fake_consul(acl=True) as consul:
        acls = Acls(consul)
        await method(acls, nomad)
        await acls.rule(BindType="service", BindName="web")
        made = await acls.login(nomad.signer)

        replaced = await method(acls, nomad, Description="another")
        assert replaced["Description"] == "another"
        assert await acls.call("GET", "token/self", token=made["SecretID"]) == made
        await acls.call("DELETE", "auth-method/m")

        assert await acls.call("GET", "binding-rules") == []
        assert (await acls.refused("GET", "token/self", token=made["SecretID"]))[0] == 404
        assert await acls.refused("DELETE", "auth-method/m") == (404, "Cannot find auth method to delete")
        assert (await acls.refused("GET", "auth-method/m"))[0] == 404


async def test_a_login_ends_with_the_max_token_ttl_of_its_method() -> None:
    async with FakeNomad() as nomad, fake_consul(acl=True) as consul:
        acls = Acls(consul)
        assert (await method(acls, nomad, MaxTokenTTL="5m"))["MaxTokenTTL"] == "5m0s"
        await acls.rule(BindType="service", BindName="web")
        made = await acls.login(nomad.signer)
        assert await acls.call("GET", "token/self", token=made["SecretID"])

        consul.fake.acl.tokens[made["SecretID"]]["ExpirationTime"] = "2020-01-01T00:00:00+00:00"

        assert (await acls.refused("GET", "token/self", token=made["SecretID"]))[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("binding-rule", {"Selector": "values.job == x"}, 'Selector "values.job" is not valid'),
        ("binding-rule", {"Selector": "value.job =="}, "Selector is invalid"),
        ("binding-rule", {"AuthMethod": "none"}, 'cannot find auth method with name "none"'),
        ("binding-rule", {"BindType": "user"}, 'unknown BindType "user"'),
        ("binding-rule", {"BindName": "a b"}, 'invalid bind name: "a b"'),
        ("role", {"Name": "r", "Policies": [{"Name": "none"}]}, 'No such ACL policy with name "none"'),
        ("role", {"Name": "a b"}, "Only alphanumeric characters, '-' and '_' are allowed"),
        ("policy", {"Name": "global-management"}, 'A Policy with Name "global-management" already exists'),
        ("auth-method", {"Name": "m", "Type": "oidc"}, "the Type field of an Auth Method is immutable"),
        ("auth-method", {"Name": "x", "Type": "jwt"}, "exactly one of"),
        ("auth-method", {"Name": "x", "Type": "jwt", "Config": {"JWKSURL": "http://127.0.0.1:1/"}}, "JWKSURL"),
    ],
)
async def test_what_consul_would_not_take_is_refused(path: str, body: dict[str, Any], text: str) -> None:
    async with FakeNomad() as nomad, fake_consul(acl=True) as consul:
        acls = Acls(consul)
        await method(acls, nomad)
        rule = {"AuthMethod": "m", "BindType": "role", "BindName": "x"} if path == "binding-rule" else {}

        status, told = await acls.refused("PUT", path, rule | body)

    assert status == 500
    assert text in told


async def test_the_first_token_is_made_once() -> None:
    async with FakeConsul(acl=True, bootstrapped=False) as fake:
        consul = Consul(fake.address, fake.ttl_min, fake)
        acls = Acls(consul)
        begun = "ACL system must be bootstrapped before making any requests that require authorization: ACL not found"
        assert await acls.refused("GET", "policies", token="anything") == (403, begun)

        made = await acls.call("PUT", "bootstrap", token="")

        assert made["ID"] == made["SecretID"] == fake.management
        assert await acls.call("GET", "policies")
        status, text = await acls.refused("PUT", "bootstrap", token="")
        assert (status, "ACL bootstrap no longer allowed" in text) == (403, True)
        await consul.close()


IDENTITY = {"Name": "consul_default", "Audience": ["consul.io"], "TTL": 3_600_000_000_000, "File": True}
FILES = ("$(cat secrets/consul_token)", "$(cat secrets/nomad_consul_default.jwt)")
JOB = {
    "ID": "modalnomad-router",
    "Name": "modalnomad-router",
    "Namespace": "modalnomad",
    "Type": "service",
    "Datacenters": ["*"],
    "TaskGroups": [
        {
            "Name": "router",
            "Count": 1,
            "Tasks": [
                {
                    "Name": "router",
                    "Driver": "raw_exec",
                    "Config": {
                        "command": "/bin/sh",
                        "args": ["-c", f"echo $CONSUL_HTTP_TOKEN {' '.join(FILES)}; exec sleep 300"],
                    },
                    "Consul": {},
                    "Identities": [IDENTITY],
                    "Resources": {"CPU": 50, "MemoryMB": 64},
                }
            ],
        }
    ],
}
"""Asks for the login as the routers' job does."""


@pytest.mark.skipif(nomad_program() is None, reason="no nomad on PATH")
async def test_a_real_nomad_logs_the_routers_in_with_their_rights_and_out_at_their_end(tmp_path: Path) -> None:
    async with fake_consul(acl=True) as consul:
        fake = consul.fake
        agent = NomadAgent(acl=True, consul=consul.address.removeprefix("http://"), consul_token=fake.management)
        async with agent:
            settings = Settings(
                nomad=NomadSettings(address=agent.address, token=SecretStr(agent.token)),
                consul=ConsulSettings(address=consul.address, token=SecretStr(fake.management)),
            )
            steps = [one async for one in set_up(settings, (), router_job="modalnomad", only=["nomad", "consul"])]
            assert {step.outcome for step in steps} == {"made"}, steps

            await agent.calls.put("/v1/jobs", {"Job": JOB}, namespace="modalnomad")
            (allocation,) = await agent.calls.until(
                "/v1/job/modalnomad-router/allocations",
                lambda found: found and found[0]["ClientStatus"] == "running",
                namespace="modalnomad",
            )
            logs = f"/v1/client/fs/logs/{allocation['ID']}"
            how: dict[str, Any] = {
                "task": "router",
                "type": "stdout",
                "plain": True,
                "follow": True,
                "namespace": "modalnomad",
            }
            async with asyncio.timeout(20), agent.calls.open(logs, **how) as stream:
                of_environment, of_file, identity = (await stream.content.readline()).decode().split()

            assert of_environment == of_file
            token = fake.acl.tokens[of_file]
            assert [one["Name"] for one in token["Roles"]] == ["modalnomad-router"]
            assert token["Policies"] == []
            assert f'"node_id":"{agent.node}"' in token["Description"]
            api = consul.api(of_file)
            assert await api.put("modalnomad/routers/r1", b"{}")
            with pytest.raises(ServerRefused, match="key:write"):
                await api.put("modalnomad/apps/main/a", b"{}")

            # When that token ends, the identity in the file gets another.
            (tmp_path / "identity").write_text(identity)
            del fake.acl.tokens[of_file]
            await LoginRenewal(api.http, tmp_path / "identity", "nomad-workloads").look()
            assert await api.put("modalnomad/routers/r1", b"{}")
            fake.acl.tokens[of_file] = token

            await agent.calls.call("DELETE", "/v1/job/modalnomad-router", namespace="modalnomad")
            await until(lambda: of_file not in fake.acl.tokens, 20)
