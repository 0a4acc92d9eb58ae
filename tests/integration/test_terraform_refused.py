"""What Terraform says where something is in the way: servers that are down, tokens that may too little, names that are
taken, a login of Vault left half made. Real plug-ins, Nomad and OpenBao, a stand-in for Consul; no routers."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.terraform import TERRAFORM
from tests.support.terraform_cluster import Platform, bare, servers_given
from tests.support.terraform_objects import Apis, different, objects

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150), pytest.mark.slow]

NOBODY = "http://127.0.0.1:1"
"""Nothing listens there."""
DOWN = {"nomad": {"nomad_address": NOBODY}, "vault": {"vault_address": NOBODY}, "consul": {"consul_address": NOBODY}}
AT_ONCE = {"VAULT_MAX_RETRIES": "0"}
ALL_BUT_ROUTERS = ("-target=module.environment", "-target=module.consul")
KEYS = "  jwks_url     = module.nomad.jwks_url\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Platform, dict[str, Any]]]:
    """The full example, and all objects of the servers when nothing was done."""
    plugins = servers_given()
    async with bare(tmp_path_factory.mktemp("refused")) as c:
        platform = Platform(c, TERRAFORM / "examples" / "full", plugins)
        await platform.terraform("init")
        shutil.copy(platform.module / "main.tf", platform.folder)
        yield platform, await objects(c)


@pytest_asyncio.fixture(loop_scope="module")
async def platform(shared: tuple[Platform, dict[str, Any]]) -> AsyncIterator[Platform]:
    """With nothing in the servers, and no state."""
    platform, bare = shared
    variables = dict(platform.variables)
    yield platform
    platform.variables = variables
    shutil.copy(platform.folder / "main.tf", platform.module)
    for file in platform.module.glob("terraform.tfstate*"):
        file.unlink()
    async with Apis(platform.cluster) as apis:
        await _wipe(apis, bare)
    assert different(bare, await objects(platform.cluster), "nomad token", "nomad scheduler") == {}


async def _wipe(apis: Apis, bare: dict[str, Any]) -> None:
    """All that `bare` has not."""
    for one in await apis.nomad.get("/v1/namespaces"):
        if f"nomad namespace {one['Name']}" not in bare:
            await apis.nomad.call("DELETE", f"/v1/namespace/{one['Name']}")
    for one in await apis.nomad.get("/v1/acl/policies"):
        await apis.nomad.call("DELETE", f"/v1/acl/policy/{one['Name']}")
    for kind, place in (("policy", "policies/acl"), ("auth", "auth"), ("mount", "mounts")):
        listed = (await apis.vault.get(f"/v1/sys/{place}" + ("?list=true" if kind == "policy" else "")))["data"]
        for name in listed["keys"] if kind == "policy" else listed:
            if f"vault {kind} {name}" not in bare and name != "root":
                await apis.vault.call("DELETE", f"/v1/sys/{place}/{name}")
    for kind, plural in (("binding-rule", "binding-rules"), ("role", "roles"), ("policy", "policies")):
        for one in await apis.consul.get(f"/v1/acl/{plural}"):
            if one.get("Name") != "global-management":
                await apis.consul.call("DELETE", f"/v1/acl/{kind}/{one['ID']}")
    for one in await apis.consul.get("/v1/acl/auth-methods"):
        await apis.consul.call("DELETE", f"/v1/acl/auth-method/{one['Name']}")


def plain(text: str) -> str:
    """Without the frame that Terraform draws, on one line."""
    return " ".join(word for word in text.split() if word not in {"│", "╷", "╵"})


async def refused(platform: Platform, *words: str, env: dict[str, str] | None = None) -> str:
    """What it says, on one line."""
    done = await platform.terraform(*words, code=1, env=AT_ONCE | (env or {}))
    return plain(done.stderr)


@pytest.mark.parametrize("down", [("nomad",), ("vault",), ("consul",), ("nomad", "vault", "consul")], ids="+".join)
async def test_servers_that_are_down_before_the_first_apply(platform: Platform, down: tuple[str, ...]) -> None:
    for server in down:
        platform.variables |= DOWN[server]
    before = await objects(platform.cluster)

    assert "valid" in (await platform.terraform("validate")).stdout
    if "nomad" in down:
        told = await refused(platform, "plan")
        assert "error reading namespaces from Nomad" in told
        assert "127.0.0.1:1: connect: connection refused" in told
    else:
        planned = (await platform.terraform("plan", env=AT_ONCE)).stdout
        assert "0 to change, 0 to destroy" in planned
    told = await refused(platform, "apply", "-auto-approve", *ALL_BUT_ROUTERS)
    assert "connection refused" in told
    made = different(before, await objects(platform.cluster))
    assert not [name for name in made if name.split()[0] in down], made
    if "nomad" in down:
        assert not made


async def test_servers_that_are_down_once_there_is_a_state(platform: Platform) -> None:
    await platform.terraform("apply", "-auto-approve", *ALL_BUT_ROUTERS)
    there = await objects(platform.cluster)
    variables = dict(platform.variables)
    for server, text in (
        ("nomad", "error reading namespaces from Nomad"),
        ("vault", "failed to lookup token, err=Get"),
        ("consul", "127.0.0.1:1/v1/acl/policy/"),
    ):
        platform.variables = variables | DOWN[server]
        assert text in await refused(platform, "plan", *ALL_BUT_ROUTERS), server
        assert text in await refused(platform, "apply", "-auto-approve", *ALL_BUT_ROUTERS), server
        assert text in await refused(platform, "destroy", "-auto-approve", *ALL_BUT_ROUTERS), server
        # Nomad is asked even so whose the names are.
        code = 1 if server == "nomad" else 0
        await platform.terraform("plan", "-refresh=false", *ALL_BUT_ROUTERS, code=code, env=AT_ONCE)
        assert "modalnomad-deployer" in (await platform.terraform("output", "-json")).stdout, server
        assert "module.vault.vault_mount.this[0]" in (await platform.terraform("state", "list")).stdout

    assert await objects(platform.cluster) == there
    platform.variables = variables
    await platform.terraform("plan", "-detailed-exitcode", *ALL_BUT_ROUTERS)


VAULT_RIGHTS = {
    "auth/token/create": ["update"],
    "sys/mounts/*": ["create", "read", "update", "delete"],
    "sys/mounts": ["read"],
    "sys/policies/acl/*": ["create", "read", "update", "delete"],
    "+/config": ["create", "read", "update"],
}
"""Of somebody who may make stores and policies, and no login."""


async def weak(platform: Platform, which: str) -> dict[str, str]:
    """A token that may too little."""
    c = platform.cluster
    async with Apis(c) as apis:
        if which.startswith("nomad"):
            rules = 'namespace "*" { policy = "write" }\nnode { policy = "read" }'
            await apis.nomad.call("PUT", "/v1/acl/policy/weak", {"Name": "weak", "Rules": rules})
            made = await apis.nomad.call("PUT", "/v1/acl/token", {"Name": "w", "Type": "client", "Policies": ["weak"]})
            return {"NOMAD_TOKEN": made["SecretID"]}
        if which.startswith("consul"):
            made = await apis.consul.call("PUT", "/v1/acl/token", {"Description": "weak"})
            await apis.consul.call("DELETE", f"/v1/acl/token/{made['AccessorID']}") if "gone" in which else None
            return {"CONSUL_HTTP_TOKEN": made["SecretID"]}
    rights = {path: able for path, able in VAULT_RIGHTS.items() if "child" not in which or path != "auth/token/create"}
    c.vault.policy("weak", json.dumps({"path": {path: {"capabilities": able} for path, able in rights.items()}}))
    return {"VAULT_TOKEN": c.vault.token("weak", "default")}


@pytest.mark.parametrize(
    ("which", "texts"),
    [
        ("nomad", ['error inserting ACLPolicy "modalnomad-router": Unexpected response code: 403 (Permission denied)']),
        ("vault", ["POST", "/v1/sys/auth/jwt-nomad", "Code: 403", "permission denied"]),
        ("vault, no child tokens", ["failed to create limited child token", "auth/token/create", "Code: 403"]),
        ("consul", ["error creating ACL policy", "403", "lacks permission 'acl:write'"]),
        ("consul, gone", ["error creating ACL policy", "403", "ACL not found"]),
    ],
)
async def test_tokens_that_may_too_little(platform: Platform, which: str, texts: list[str]) -> None:
    token = await weak(platform, which)
    try:
        told = await refused(platform, "apply", "-auto-approve", *ALL_BUT_ROUTERS, env=token)
    finally:
        async with Apis(platform.cluster) as apis:
            await apis.nomad.call("DELETE", "/v1/acl/policy/weak")
            await apis.vault.call("DELETE", "/v1/sys/policies/acl/weak")
            for one in await apis.consul.get("/v1/acl/tokens"):
                if one["Description"] == "weak":
                    await apis.consul.call("DELETE", f"/v1/acl/token/{one['AccessorID']}")

    assert [text for text in texts if text not in told] == [], told
    # The cure: one that may.
    await platform.terraform("apply", "-auto-approve", *ALL_BUT_ROUTERS)
    await platform.terraform("plan", "-detailed-exitcode", *ALL_BUT_ROUTERS)


@pytest.mark.parametrize(
    ("token", "command", "text"),
    [
        ("", "apply", "Unexpected response code: 403 (Permission denied)"),
        ("6f1fbb5c-0000-0000-0000-000000000000", "plan", "Unexpected response code: 403 (Permission denied)"),
    ],
    ids=["none", "unknown"],
)
async def test_no_token_of_nomad_or_one_that_it_does_not_know(
    platform: Platform, token: str, command: str, text: str
) -> None:
    words = ("apply", "-auto-approve") if command == "apply" else ("plan",)
    told = await refused(platform, *words, "-target=module.environment", env={"NOMAD_TOKEN": token})
    assert text in told


async def test_a_login_of_vault_left_half_made_and_the_cure(platform: Platform) -> None:
    main = platform.module / "main.tf"
    text = main.read_text("utf-8")
    lost = text.replace(KEYS, f'  jwks_url = "{NOBODY}/.well-known/jwks.json"\n')
    assert lost.count(NOBODY) == 1
    main.write_text(lost, "utf-8")
    told = await refused(platform, "apply", "-auto-approve", "-target=module.environment")
    assert "error updating configuration to Vault for path jwt-nomad" in told
    assert "error checking jwks URL" in told

    main.write_text(text, "utf-8")
    told = await refused(platform, "apply", "-auto-approve", "-target=module.environment")
    assert "path is already in use at jwt-nomad/" in told
    async with Apis(platform.cluster) as apis:  # vault auth disable jwt-nomad
        await apis.vault.call("DELETE", "/v1/sys/auth/jwt-nomad")
    await platform.terraform("apply", "-auto-approve", "-target=module.environment")
    await platform.terraform("plan", "-detailed-exitcode", "-target=module.environment")


async def test_names_in_nomad_that_are_somebody_elses(platform: Platform) -> None:
    async with Apis(platform.cluster) as apis:
        theirs = {"Description": "of the models' team"}
        for name in ("modalnomad-main", "modalnomad"):
            await apis.nomad.call("PUT", f"/v1/namespace/{name}", theirs | {"Name": name})
        for name in ("modalnomad-viewer", "modalnomad-router-job"):
            policy = theirs | {"Name": name, "Rules": 'node { policy = "read" }'}
            await apis.nomad.call("PUT", f"/v1/acl/policy/{name}", policy)
        there = await objects(platform.cluster)

        told = []
        for cure in (
            "acl/policy/modalnomad-viewer",
            "namespace/modalnomad-main",
            "acl/policy/modalnomad-router-job",
            "namespace/modalnomad",
        ):
            told.append(await refused(platform, "plan"))
            assert "Resource precondition failed" in told[-1]
            assert f"{cure.rpartition('/')[2]} already" in told[-1]
            assert await objects(platform.cluster) == there
            await apis.nomad.call("DELETE", f"/v1/{cure}")
            there.pop(f"nomad {cure.removeprefix('acl/').replace('/', ' ')}")
        assert "nomad acl policy info modalnomad-viewer" in told[0]
        assert "which says of itself \"of the models' team\": it may be somebody else's" in told[1]
        await platform.terraform("plan")


async def test_names_in_vault_and_consul_that_are_somebody_elses(platform: Platform) -> None:
    async with Apis(platform.cluster) as apis:
        await apis.vault.call("POST", "/v1/sys/mounts/modalnomad", {"type": "kv", "options": {"version": "2"}})
        made = await apis.consul.call("PUT", "/v1/acl/policy", {"Name": "modalnomad-router", "Rules": ""})
        rules = json.dumps({"path": {"theirs/*": {"capabilities": ["read"]}}})
        await apis.vault.call("PUT", "/v1/sys/policies/acl/modalnomad-router", {"policy": rules})

        told = await refused(platform, "apply", "-auto-approve", *ALL_BUT_ROUTERS, "-target=module.vault")
        assert "path is already in use at modalnomad/" in told
        assert 'A Policy with Name "modalnomad-router" already exists' in told
        # Vault's policies are replaced without a word: nothing asks whether they are there.
        assert "theirs" not in (await objects(platform.cluster))["vault policy modalnomad-router"]

        platform.variables["create_mount"] = False
        await apis.consul.call("DELETE", f"/v1/acl/policy/{made['ID']}")
        await platform.terraform("apply", "-auto-approve", *ALL_BUT_ROUTERS)
        await platform.terraform("plan", "-detailed-exitcode", *ALL_BUT_ROUTERS)
