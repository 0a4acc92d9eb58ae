"""The full example of Terraform from bare servers to an App that answers, and back: real plug-ins, Nomad and OpenBao, a
stand-in for Consul. One cluster for the whole file; each test begins with all of it applied, the last takes it down."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.terraform import TERRAFORM
from tests.support.terraform_cluster import Platform, bare, servers_given
from tests.support.terraform_objects import Apis, different, objects

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200), pytest.mark.slow]

SECRET = "the-value-of-a-secret-8d1f"
GIVEN_BY_SETTINGS = (
    *("NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR", "MODALNOMAD_BACKEND", "MODALNOMAD_VAULT__MOUNT"),
    *("MODALNOMAD_ARTIFACTS__STORE", "MODALNOMAD_ARTIFACTS__URL", "MODALNOMAD_ARTIFACTS__PORT"),
)
"""Variables that commands need no more once they have the settings file."""


@dataclass
class World:
    """Servers, and the example applied to them."""

    cluster: Cluster
    platform: Platform
    bare: dict[str, Any]
    """All objects before the first apply."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Applied, and used by somebody who deploys: an App and a secret."""
    plugins = servers_given()
    folder = tmp_path_factory.mktemp("apply")
    async with bare(folder) as c:
        before = await objects(c)
        platform = Platform(c, TERRAFORM / "examples" / "full", plugins)
        await platform.terraform("init")
        await platform.terraform("apply", "-auto-approve")

        settings = folder / "config.toml"
        settings.write_text((await platform.terraform("output", "-raw", "settings")).stdout)
        for name in GIVEN_BY_SETTINGS:
            del c.env[name]
        c.env["MODALNOMAD_CONFIG"] = str(settings)
        await platform.people()
        await c.cli("secret", "create", "weather", f"KEY={SECRET}")
        await c.cli("deploy", "examples/hello.py")
        yield World(c, platform, before)


async def test_a_second_plan_is_empty_and_routers_are_ready(world: World) -> None:
    await world.platform.terraform("plan", "-detailed-exitcode")

    async with aiohttp.request("GET", f"{world.platform.admin_url}/readyz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ready")


async def test_an_app_deployed_by_a_deployer_answers(world: World) -> None:
    assert await world.platform.get("hello-greet.localhost", "/?name=Ada") == (200, '"Hello, Ada!"')

    told = await world.cluster.cli("doctor", code=None)
    assert "✗" not in told.stdout, told.stdout


async def test_one_more_environment_is_three_objects_more_and_changes_nothing_else(world: World) -> None:
    platform = world.platform
    before = await objects(world.cluster)
    platform.variables["environments"] = {"main": {}, "staging": {"task_drivers": ["raw_exec"]}}

    assert await platform.changes() == {
        f'module.environment["staging"].{address}.this': ["create"]
        for address in ("nomad_namespace", "vault_jwt_auth_backend_role", "vault_policy")
    }
    await platform.terraform("apply", "-auto-approve", "test.plan")
    after = await objects(world.cluster)
    assert sorted(different(before, after)) == [
        "nomad namespace modalnomad-staging",
        "vault policy modalnomad-staging",
        "vault role jwt-nomad/modalnomad-staging",
    ]
    assert after["nomad namespace modalnomad-staging"]["Capabilities"]["EnabledTaskDrivers"] == ["raw_exec"]
    await platform.terraform("plan", "-detailed-exitcode")
    told = await world.cluster.cli("deploy", "--env", "staging", "examples/hello.py")
    (host,) = re.findall(r"→ http://([^:/\s]+)", told.stdout)
    assert "staging" in host
    assert await platform.get(host) == (200, '"Hello, world!"')


async def test_it_is_what_setup_makes_and_setup_finds_nothing_to_do(world: World, tmp_path: Path) -> None:
    c, platform = world.cluster, world.platform
    platform.variables["environments"] = {"main": {}, "staging": {}}
    await platform.terraform("apply", "-auto-approve")
    applied = await objects(c)
    words = ("setup", "--router-job", "modalnomad", "--env", "main", "--env", "staging", "--json")

    told = await c.cli(*words, env=platform.management)
    assert {record["outcome"] for record in told.records() if "outcome" in record} == {"there"}, told.stdout
    assert different(applied, await objects(c)) == {}

    async with bare(tmp_path) as another:
        before = await objects(another)
        other = Platform(another, TERRAFORM / "examples" / "full", servers_given())
        other.variables["environments"] = platform.variables["environments"]
        told = await another.cli(*words, env=other.management)
        outcomes = {record["outcome"] for record in told.records() if "outcome" in record}
        assert outcomes == {"made"}, told.stdout
        made = await objects(another)
        assert len(different(before, made)) >= 22
        # The scheduler, the routers' job and its login are Terraform's alone here; tokens and the secret people's.
        rest = ("nomad scheduler", "nomad job", "nomad token", "consul token", "vault secret modalnomad/modalnomad/")
        assert different(applied, made, *rest) == {}

        await _applied_over_it(other, made)


async def _applied_over_it(platform: Platform, made: dict[str, Any]) -> None:
    """Over what `setup` made, without imports: what refuses, and what is taken over without a word."""
    platform.variables["create_consul_auth_method"] = False
    await platform.terraform("init")
    told = (await platform.terraform("apply", "-auto-approve", code=1)).stderr

    assert "path is already in use at modalnomad/" in told
    assert "path is already in use at jwt-nomad/" in told
    for name in ("deployer", "router", "nomad-agent"):
        assert f'A Policy with Name "modalnomad-{name}" already exists' in told
    assert told.count("Error: ") == 5
    taken = (await platform.terraform("state", "list")).stdout.split()
    assert sorted(name for name in taken if ".data." not in name) == [
        'module.nomad.nomad_acl_policy.this["modalnomad-deployer"]',
        'module.nomad.nomad_acl_policy.this["modalnomad-router"]',
        'module.nomad.nomad_acl_policy.this["modalnomad-viewer"]',
        "module.nomad.nomad_scheduler_config.this[0]",
        'module.vault.vault_policy.this["modalnomad-deployer"]',
        'module.vault.vault_policy.this["modalnomad-router"]',
    ]
    assert different(made, await objects(platform.cluster), "nomad scheduler") == {}


async def test_no_secret_is_in_state_plan_or_what_is_shown(world: World) -> None:
    c, platform = world.cluster, world.platform
    operator = {"VAULT_TOKEN": c.vault.token("root")}  # the word "root" is in each state
    async with Apis(c) as apis:
        key = await apis.vault.get("/v1/modalnomad/data/modalnomad-platform/key")
    of_tasks = {str(file): file.read_text() for file in c.nomad.folder.glob("client/alloc/*/*/secrets/*_*")}
    secrets = {
        "management token of Nomad": c.nomad.token,
        "management token of Vault": operator["VAULT_TOKEN"],
        "token of Nomad of who deploys": c.env["NOMAD_TOKEN"],
        "token of Vault of who deploys": c.env["VAULT_TOKEN"],
        **{f"token of Consul, {one['Description']}": secret for secret, one in c.consul.acl.tokens.items()},
        **{name: text for name, text in of_tasks.items() if text},
        "platform key": key["data"]["data"]["key"],
        "secret": SECRET,
    }
    assert {Path(name).name for name in of_tasks} >= {"nomad_router.jwt", "vault_token", "consul_token"}
    assert len(c.consul.acl.tokens) >= 3, "management, who deploys, the router"

    await platform.terraform("apply", "-auto-approve", env=operator)
    await platform.terraform("plan", "-out=secrets.plan", env=operator)
    with zipfile.ZipFile(platform.module / "secrets.plan") as plan:
        parts = {f"{name} of the plan": plan.read(name) for name in plan.namelist()}
    texts = {
        "state": platform.state.read_bytes(),
        "show -json": (await platform.terraform("show", "-json")).stdout.encode(),
        "show -json of the plan": (await platform.terraform("show", "-json", "secrets.plan")).stdout.encode(),
        **parts,
    }
    for name in ("state", "show -json", "show -json of the plan", "tfstate of the plan", "tfplan of the plan"):
        assert b"modalnomad-main" in texts[name], name
    assert not [(where, what) for where, text in texts.items() for what, one in secrets.items() if one.encode() in text]


async def test_tokens_in_the_state_are_warned_of_in_each_plan(world: World) -> None:
    main = world.platform.module / "main.tf"
    text = main.read_text("utf-8")
    asked = text.replace("  manage_scheduler = true\n", "  manage_scheduler = true\n  create_tokens = true\n")
    assert asked != text
    main.write_text(asked, "utf-8")
    try:
        planned = " ".join((await world.platform.terraform("plan")).stdout.split())
    finally:
        main.write_text(text, "utf-8")

    assert "3 to add, 0 to change, 0 to destroy" in planned
    assert "Warning: Check block assertion failed" in planned
    assert "create_tokens is on: secret ids of tokens lie in the state, and in saved plans, as plain text" in planned


async def test_what_somebody_changed_is_seen_and_set_right(world: World) -> None:
    c, platform = world.cluster, world.platform
    right = await objects(c)
    async with Apis(c) as apis:
        await _spoil(apis)
        assert (await apis.nomad.get("/v1/job/modalnomad-router?namespace=modalnomad"))["Stop"]
    wrong = different(right, await objects(c))
    assert len(wrong) >= 11, sorted(wrong)

    assert await platform.changes() == {
        "module.nomad.nomad_scheduler_config.this[0]": ["update"],
        'module.nomad.nomad_acl_policy.this["modalnomad-viewer"]': ["create"],
        'module.nomad.nomad_acl_policy.this["modalnomad-router"]': ["update"],
        'module.environment["main"].nomad_namespace.this': ["update"],
        'module.environment["main"].vault_policy.this': ["update"],
        'module.environment["main"].vault_jwt_auth_backend_role.this': ["update"],
        'module.vault.vault_policy.this["modalnomad-deployer"]': ["update"],
        "module.vault.vault_jwt_auth_backend.this[0]": ["update"],
        'module.consul.consul_acl_policy.this["modalnomad-router"]': ["update"],
        "module.consul.consul_acl_role.this[0]": ["update"],
        "module.consul.consul_acl_binding_rule.this[0]": ["update"],
        "module.router.nomad_job.this": ["update"],
    }
    await platform.terraform("apply", "-auto-approve", "test.plan")
    assert different(right, await objects(c)) == {}
    await platform.terraform("plan", "-detailed-exitcode")
    assert (await platform.get("hello-greet.localhost"))[0] == 200


async def _spoil(apis: Apis) -> None:
    """One of each kind."""
    nomad, vault, consul = apis.nomad, apis.vault, apis.consul
    scheduler = (await nomad.get("/v1/operator/scheduler/configuration"))["SchedulerConfig"]
    await nomad.call(
        "PUT", "/v1/operator/scheduler/configuration", scheduler | {"MemoryOversubscriptionEnabled": False}
    )
    await nomad.call("DELETE", "/v1/acl/policy/modalnomad-viewer")
    policy = await nomad.get("/v1/acl/policy/modalnomad-router")
    await nomad.call("PUT", "/v1/acl/policy/modalnomad-router", policy | {"Rules": 'node { policy = "write" }'})
    await nomad.call(
        "PUT", "/v1/namespace/modalnomad-main", {"Name": "modalnomad-main", "Description": "modalnomad, by hand"}
    )
    await nomad.call("DELETE", "/v1/job/modalnomad-router?namespace=modalnomad&no_shutdown_delay=true")
    rules = json.dumps({"path": {"*": {"capabilities": ["read"]}}})
    await vault.call("PUT", "/v1/sys/policies/acl/modalnomad-main", {"policy": rules})
    await vault.call("DELETE", "/v1/sys/policies/acl/modalnomad-deployer")
    role = {"role_type": "jwt", "user_claim": "sub", "bound_claims": {"nomad_namespace": "x"}}
    await vault.call("PUT", "/v1/auth/jwt-nomad/role/modalnomad-main", role)
    config = (await vault.get("/v1/auth/jwt-nomad/config"))["data"]
    config = {"jwks_url": config["jwks_url"], "jwt_supported_algs": ["RS256"]}
    await vault.call("PUT", "/v1/auth/jwt-nomad/config", config)
    for kind, change in (
        ("policy", {"Rules": 'key_prefix "" { policy = "write" }'}),
        ("role", {"Description": "somebody's"}),
        ("binding-rule", {"Selector": ""}),
    ):
        listed = "policies" if kind == "policy" else f"{kind}s"
        found = await consul.get(f"/v1/acl/{listed}")
        (one,) = (one for one in found if "modalnomad-router" in {one.get("Name"), one.get("BindName")})
        one = await consul.get(f"/v1/acl/{kind}/{one['ID']}")
        await consul.call("PUT", f"/v1/acl/{kind}/{one['ID']}", one | change)


async def test_the_scheduler_is_as_it_is_said_or_not_touched(world: World) -> None:
    """The example says it; the module by itself leaves it alone."""
    c, platform = world.cluster, world.platform
    scheduler = (await objects(c))["nomad scheduler"]
    assert scheduler["SchedulerAlgorithm"] == "binpack"
    assert scheduler["MemoryOversubscriptionEnabled"] is True
    assert scheduler["PreemptionConfig"] == {
        "BatchSchedulerEnabled": True,
        "ServiceSchedulerEnabled": True,
        "SysBatchSchedulerEnabled": False,
        "SystemSchedulerEnabled": True,
    }
    main = platform.module / "main.tf"
    text = main.read_text("utf-8")
    main.write_text(text.replace("  manage_scheduler = true\n", ""), "utf-8")
    try:
        assert await platform.changes() == {"module.nomad.nomad_scheduler_config.this[0]": ["delete"]}
        await platform.terraform("apply", "-auto-approve", "test.plan")
        assert (await objects(c))["nomad scheduler"] == scheduler
    finally:
        main.write_text(text, "utf-8")
        await platform.terraform("apply", "-auto-approve")


async def test_taken_down_it_leaves_secrets_and_nothing_else_of_ours_and_comes_back_with_them(world: World) -> None:
    c, platform = world.cluster, world.platform
    platform.variables["environments"] = {"main": {}}
    told = (await platform.terraform("destroy", "-auto-approve", code=1)).stderr
    assert "Resource module.vault.vault_mount.this[0] has lifecycle.prevent_destroy set" in " ".join(told.split())

    await c.cli("app", "stop", "hello", "-y")
    async with Apis(c) as apis:
        for job in await apis.nomad.get("/v1/jobs?namespace=*"):
            if job["Namespace"].startswith("modalnomad-"):
                await apis.nomad.call("DELETE", f"/v1/job/{job['ID']}?purge=true&namespace={job['Namespace']}")
    await platform.terraform("state", "rm", "module.vault.vault_mount.this")
    await platform.terraform("destroy", "-auto-approve")

    left = different(world.bare, await objects(c), "nomad token", "consul token modalnomad-deployer")
    assert sorted(left) == [
        "nomad scheduler",
        "vault mount modalnomad/",
        "vault secret modalnomad/modalnomad-platform/key",
        "vault secret modalnomad/modalnomad/main/weather",
    ]
    assert c.vault.read("modalnomad", "modalnomad/main/weather") == {"KEY": SECRET}

    told = (await platform.terraform("apply", "-auto-approve", "-target=module.vault", code=1)).stderr
    assert "path is already in use at modalnomad/" in told
    await platform.terraform("import", "module.vault.vault_mount.this[0]", "modalnomad")
    await platform.terraform("apply", "-auto-approve")
    await platform.terraform("plan", "-detailed-exitcode")
    assert c.vault.read("modalnomad", "modalnomad/main/weather") == {"KEY": SECRET}
