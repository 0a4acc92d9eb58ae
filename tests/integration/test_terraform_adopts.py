"""Terraform takes over what `modalnomad setup` made, and finds nothing to change: the real plug-ins, Nomad and OpenBao,
and a stand-in for Consul."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from modalnomad.hashicorp.setup.run import set_up
from modalnomad.settings import ConsulSettings, NomadSettings, Settings, VaultSettings
from tests.support.cluster import Cluster
from tests.support.terraform import TERRAFORM
from tests.support.terraform_cluster import Platform, bare, servers_given

NOT_MADE = {"nomad_scheduler_config", "nomad_job"}
"""What `setup` does not make."""
NO_IMPORT = {"consul_acl_auth_method", "consul_acl_binding_rule"}
"""What the plug-in cannot import."""
ADDRESS = re.compile(
    r'module\.(?P<module>\w+)(\["(?P<environment>.*?)"\])?\.(?P<kind>\w+)\.this(\["?(?P<key>.*?)"?\])?'
)


def settings(c: Cluster) -> Settings:
    """With tokens of management."""
    return Settings(
        nomad=NomadSettings(address=c.nomad.address, token=SecretStr(c.nomad.token)),
        consul=ConsulSettings(address=c.consul.address, token=SecretStr(c.consul.management)),
        vault=VaultSettings(address=c.vault.address, token=SecretStr(c.vault.root_token), mount="modalnomad"),
    )


async def ids(c: Cluster, plural: str) -> dict[str, str]:
    """Of Consul: name → id."""
    headers = {"X-Consul-Token": c.consul.management}
    async with aiohttp.request("GET", f"{c.consul.address}/v1/acl/{plural}", headers=headers) as answer:
        return {each["Name"]: each["ID"] for each in await answer.json()}


def identifier(found: Mapping[str, Any], consul: Mapping[str, Mapping[str, str]]) -> str:
    """What each kind is imported by."""
    kind, key = found["kind"], found["key"]
    of_environment = found["environment"] is not None
    if kind == "nomad_namespace":
        return f"modalnomad-{found['environment']}" if of_environment else "modalnomad"
    if kind == "vault_policy":
        return f"modalnomad-{found['environment']}" if of_environment else str(key)
    if kind == "vault_jwt_auth_backend_role":
        return f"auth/jwt-nomad/role/modalnomad-{found['environment'] if of_environment else 'router'}"
    if kind == "nomad_acl_policy":
        return "modalnomad-router-job" if found["module"] == "router" else str(key)
    if kind == "consul_acl_policy":
        return consul["policies"][str(key)]
    if kind == "consul_acl_role":
        return consul["roles"]["modalnomad-router"]
    return {"vault_mount": "modalnomad", "vault_jwt_auth_backend": "jwt-nomad"}[kind]


async def test_nothing_that_setup_made_has_to_change(tmp_path: Path) -> None:
    plugins = servers_given()
    async with bare(tmp_path) as c:
        steps = [step async for step in set_up(settings(c), ["main"], router_job="modalnomad")]
        assert {step.outcome for step in steps} == {"made"}, steps
        consul = {plural: await ids(c, plural) for plural in ("policies", "roles")}
        platform = Platform(c, TERRAFORM / "examples" / "full", plugins)
        platform.variables["create_consul_auth_method"] = False
        await platform.terraform("init")

        planned = (await platform.terraform("plan")).stdout
        made = {address: ADDRESS.fullmatch(address) for address in re.findall(r"# (\S+) will be created", planned)}
        assert all(made.values()), made
        known = {
            address: found for address, found in made.items() if found and found["kind"] not in NOT_MADE | NO_IMPORT
        }
        blocks = [
            f'import {{\n  to = {address}\n  id = "{identifier(found.groupdict(), consul)}"\n}}\n'
            for address, found in known.items()
        ]
        (platform.module / "imports.tf").write_text("\n".join(blocks))
        planned = (await platform.terraform("plan")).stdout

        rest = len(made) - len(known)
        assert len(known) >= 2 + 4 + 1 + 1 + 3 + 2 + 3 + 1
        assert f"Plan: {len(known)} to import, {rest} to add, 0 to change, 0 to destroy." in planned, planned
