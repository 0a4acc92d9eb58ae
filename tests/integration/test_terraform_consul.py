"""The module consul-platform with the real plug-in on the stand-in for Consul: what it makes is what `setup` makes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.setup.run import set_up
from modalnomad.settings import ConsulSettings, NomadSettings, Settings
from tests.support.consul import Consul, fake_consul
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.terraform import TERRAFORM, plugins_given, run

CHANGES = 2
"""With this `terraform plan -detailed-exitcode` ends when something is to be done."""
METHOD = "nomad-workloads"


class Module:
    """It in a root module of its own."""

    def __init__(self, folder: Path, consul: Consul, nomad: FakeNomad) -> None:
        self.folder, self.consul, self.nomad = folder, consul, nomad
        self.url = f"{nomad.address}/.well-known/jwks.json"
        self.write(create_auth_method=True)

    def write(self, **arguments: Any) -> None:
        """Its arguments from now on."""
        source = os.path.relpath(TERRAFORM / "modules" / "consul-platform", self.folder)
        root = {
            "terraform": {"required_providers": {"consul": {"source": "hashicorp/consul"}}},
            "provider": {"consul": {"address": self.consul.address.removeprefix("http://")}},
            "module": {"consul": {"source": source, "jwks_url": self.url, **arguments}},
        }
        (self.folder / "main.tf.json").write_text(json.dumps(root))

    async def terraform(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`terraform WORDS`, which has to end with `code`."""
        token = {"CONSUL_HTTP_TOKEN": self.consul.fake.management}
        # Not on the loop: the plug-in asks servers that live there.
        done = await asyncio.to_thread(run, self.folder, *words, "-no-color", variables=token)
        assert done.returncode == code, f"terraform {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    async def set_up(self) -> dict[str, str]:
        """Outcomes of `setup` by what it looked at."""
        settings = Settings(
            nomad=NomadSettings(address=self.nomad.address),
            consul=ConsulSettings(address=self.consul.address, token=SecretStr(self.consul.fake.management)),
        )
        return {one.what: one.outcome async for one in set_up(settings, (), router_job="modalnomad", only=["consul"])}

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Of the ACL API, with all rights."""
        api = self.consul.api(self.consul.fake.management)
        return (await api.http.request(method, f"/v1/acl/{path}", data=body)).json()


@pytest.fixture
async def module(tmp_path: Path) -> AsyncIterator[Module]:
    plugins = plugins_given()
    async with FakeNomad() as nomad, fake_consul(acl=True) as consul:
        made = Module(tmp_path, consul, nomad)
        await made.terraform("init", *plugins)
        yield made


async def test_what_is_applied_is_what_setup_wants_and_goes_with_destroy(module: Module) -> None:
    acl = module.consul.fake.acl
    await module.terraform("apply", "-auto-approve")
    index = acl.index

    await module.terraform("plan", "-detailed-exitcode")
    assert set((await module.set_up()).values()) == {"there"}
    assert acl.index == index

    acl.roles[next(iter(acl.roles))]["Description"] = "somebody's"
    await module.terraform("plan", "-detailed-exitcode", code=CHANGES)
    await module.terraform("destroy", "-auto-approve")
    assert [one["Name"] for one in acl.policies.values()] == ["global-management"]
    assert not acl.methods
    assert not acl.bindings
    assert not acl.roles


async def test_what_setup_made_is_refused_by_its_name_and_taken_over_by_imports(module: Module) -> None:
    await module.set_up()
    before = module.consul.fake.acl.index
    module.write(create_auth_method=False)

    told = (await module.terraform("apply", "-auto-approve", code=1)).stderr
    assert 'A Policy with Name "modalnomad-router" already exists' in told
    assert module.consul.fake.acl.index == before

    for one in await module.call("GET", "policies"):
        if one["Name"] != "global-management":
            await module.terraform("import", f'module.consul.consul_acl_policy.this["{one["Name"]}"]', one["ID"])
    (role,) = await module.call("GET", "roles")
    await module.terraform("import", "module.consul.consul_acl_role.this[0]", role["ID"])
    # The plug-in cannot import binding rules: Consul gets a second one, and the first goes.
    (rule,) = await module.call("GET", "binding-rules")
    planned = (await module.terraform("plan")).stdout
    assert "1 to add, 0 to change, 0 to destroy" in planned
    await module.terraform("apply", "-auto-approve")
    await module.call("DELETE", f"binding-rule/{rule['ID']}")

    await module.terraform("plan", "-detailed-exitcode")
    assert set((await module.set_up()).values()) == {"there"}


async def test_an_auth_method_that_is_there_is_used_and_survives(module: Module) -> None:
    await module.set_up()
    for policy in await module.call("GET", "policies"):
        if policy["Name"] != "global-management":
            await module.call("DELETE", f"policy/{policy['ID']}")
    for kind in ("role", "binding-rule"):
        (one,) = await module.call("GET", f"{kind}s")
        await module.call("DELETE", f"{kind}/{one['ID']}")
    there = await module.call("GET", f"auth-method/{METHOD}")
    module.write(create_auth_method=False)

    await module.terraform("apply", "-auto-approve")
    await module.terraform("plan", "-detailed-exitcode")
    await module.terraform("destroy", "-auto-approve")

    assert await module.call("GET", f"auth-method/{METHOD}") == there


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"BoundAudiences": ["other"]}, "lets no identity of Nomad's tasks in"),
        ({"ClaimMappings": {}}, "does not tell who a task is"),
        (None, "could not find auth-method 'nomad-workloads'"),
    ],
)
async def test_an_auth_method_that_would_not_do_is_refused_in_the_plan(
    module: Module, changed: dict[str, Any] | None, text: str
) -> None:
    if changed is not None:
        claims = {claim: claim for claim in ("nomad_namespace", "nomad_job_id", "nomad_task")}
        config = {"JWKSURL": module.url, "BoundAudiences": ["consul.io"], "ClaimMappings": claims} | changed
        await module.call("PUT", "auth-method", {"Name": METHOD, "Type": "jwt", "Config": config})
    module.write(create_auth_method=False)

    told = await module.terraform("plan", code=1)

    assert text in " ".join(told.stderr.split())


async def test_whose_the_auth_method_is_has_to_be_said(module: Module) -> None:
    module.write()
    told = await module.terraform("plan", code=1)
    assert "write create_auth_method = false if it does, true if not" in " ".join(told.stderr.split())

    module.write(login=False)
    assert "3 to add" in (await module.terraform("plan")).stdout


async def test_keys_that_consul_cannot_read_are_told_and_the_next_apply_ends_what_was_begun(module: Module) -> None:
    good, module.url = module.url, "http://127.0.0.1:1/.well-known/jwks.json"
    module.write(create_auth_method=True)
    told = (await module.terraform("apply", "-auto-approve", code=1)).stderr
    assert "error checking JWKSURL" in told

    module.url = good
    module.write(create_auth_method=True)
    await module.terraform("apply", "-auto-approve")
    await module.terraform("plan", "-detailed-exitcode")
