"""Tokens and identities of a cluster in the hands of somebody who means harm: what each of them gives, and what not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from modalnomad.hashicorp.setup.platform import filled, platform
from tests.support.cluster import Cluster, Router, cluster
from tests.support.nomad_agent import nomad_program
from tests.support.nomads import parent

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        nomad_program() is None, reason="no nomad on PATH: each role is tried on its own stand-in alone"
    ),
]

HELLO = """
import modal
app = modal.App("NAME")

@app.function(scaledown_window=60, secrets=[modal.Secret.from_name("db")])
@modal.fastapi_endpoint()
def f():
    return "hello"
"""
THIEF = '''
import http.client, json, os, pathlib, socket, urllib.error, urllib.request
import modal
app = modal.App("thief")

def call(method, url, headers={}, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()

class NomadsSocket(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(pathlib.Path(__file__).parents[2] / "secrets" / "api.sock"))

def readable(folder):
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_text(errors="replace").strip()

@app.function(scaledown_window=60, secrets=[modal.Secret.from_name("db")])
@modal.fastapi_endpoint()
def steal(vault: str, nomad: str, consul: str):
    """What this replica finds, and what that opens."""
    folder = pathlib.Path(__file__).parents[3]  # of the allocation
    signs = ("eyJ", "s.", "hvs.")
    found = {name: text for name, text in readable(folder) if text.startswith(signs)}
    found |= {name: value for name, value in os.environ.items() if value.startswith(signs)}
    opened = {}
    for name, secret in {**found, "nothing": ""}.items():
        as_vault, as_nomad = {"X-Vault-Token": secret}, {"X-Nomad-Token": secret}
        store = f"{vault}/v1/secret"
        opened[name] = {
            "own": call("GET", f"{store}/data/modalnomad/staging/db", as_vault),
            "write own": call("POST", f"{store}/data/modalnomad/staging/db", as_vault, {"data": {"PASSWORD": "x"}}),
            "another": call("GET", f"{store}/data/modalnomad/main/db", as_vault),
            "around": call("GET", f"{store}/data/modalnomad/staging/../main/db", as_vault),
            "names": call("GET", f"{store}/metadata/modalnomad/main?list=true", as_vault),
            "keys": call("GET", f"{store}/subkeys/modalnomad/main/db", as_vault),
            "platform key": call("GET", f"{store}/data/modalnomad-platform/key", as_vault),
            "token": call("POST", f"{vault}/v1/auth/token/create", as_vault, {"policies": ["modalnomad-main"]}),
            "jobs": call("GET", f"{nomad}/v1/jobs?namespace=modalnomad-staging", as_nomad),
            "variables": call("GET", f"{nomad}/v1/vars?namespace=modalnomad-staging", as_nomad),
            "records": call("GET", f"{consul}/v1/kv/modalnomad/?recurse", {"X-Consul-Token": secret}),
        }
        for role in ("main", "router"):
            login = {"role": f"modalnomad-{role}", "jwt": secret}
            opened[name][role] = call("POST", f"{vault}/v1/auth/jwt-nomad/login", {}, login)
    nomads = NomadsSocket("localhost")
    nomads.request("GET", "/v1/jobs?namespace=modalnomad-staging")
    return {"password": os.environ["PASSWORD"], "found": list(found), "opened": opened,
            "socket": nomads.getresponse().status}
'''
MAIN, STAGING, ROUTERS = "modalnomad-main", "modalnomad-staging", "modalnomad"
DENIED = {401, 403, 404}


def is_refused(status: int, said: str) -> bool:
    """Refusals of its nodes Nomad tells under other statuses, 200 among them."""
    return status in DENIED or said == "Permission denied" or (status == 200 and said == "[]")


class World:
    """A cluster with two environments, each with a secret of the same name, and an App that runs in `main`."""

    def __init__(self, made: Cluster, router: Router, session: aiohttp.ClientSession) -> None:
        self.made = made
        self.router = router
        self._session = session

    async def ask(
        self, tokens: Mapping[str, str], server: str, method: str, path: str, body: Any = None
    ) -> tuple[int, str]:
        """Status and text. `server`: nomad, vault or consul."""
        name, variable = {
            "nomad": ("X-Nomad-Token", "NOMAD_TOKEN"),
            "vault": ("X-Vault-Token", "VAULT_TOKEN"),
            "consul": ("X-Consul-Token", "CONSUL_HTTP_TOKEN"),
        }[server]
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{getattr(self.made, server).address}/v1/{path}"
        async with self._session.request(method, url, data=data, headers={name: tokens[variable]}) as answer:
            return answer.status, await answer.text()

    async def replica(self) -> str:
        """Id of the allocation of one that runs."""
        assert (await self.router.get("shop-f.localhost"))[0] == 200
        found = await self.made.nomad.calls.until(
            "/v1/allocations", lambda allocs: any(one["ClientStatus"] == "running" for one in allocs), namespace=MAIN
        )
        return str(next(one["ID"] for one in found if one["ClientStatus"] == "running"))

    async def deploy(self, name: str, text: str, environment: str, env: Mapping[str, str] | None = None) -> None:
        """With another's tokens, if given."""
        file = self.made.folder / f"{name}.py"
        file.write_text(text.replace("NAME", name))
        await self.made.cli("deploy", str(file), "--env", environment, env=env)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    folder = tmp_path_factory.mktemp("rights")
    async with cluster(folder, real=True, acl=True, environments=("main", "staging")) as made:
        await made.nomad.calls.put("/v1/namespace", {"Name": ROUTERS})
        for environment in ("main", "staging"):
            await made.cli("secret", "create", "db", f"PASSWORD=of-{environment}", "--env", environment)
        async with made.router() as router, aiohttp.ClientSession() as session:
            found = World(made, router, session)
            await found.deploy("shop", HELLO, "main")
            yield found


async def test_a_replica_opens_nothing_of_another_environment_with_all_it_finds(world: World) -> None:
    await world.deploy("thief", THIEF, "staging")
    servers = "&".join(f"{name}={getattr(world.made, name).address}" for name in ("vault", "nomad", "consul"))
    status, text = await world.router.get("staging--thief-steal.localhost", f"/?{servers}")

    assert status == 200, text
    told = json.loads(text)
    assert told["password"] == "of-staging"
    assert told["found"] == ["app/private/vault_token"], "of its own environment, where whoever deploys may read anyway"
    assert told["socket"] == 401
    opened = told["opened"]
    own = opened["app/private/vault_token"].pop("own")
    assert own[0] == 200, "it is no token: nothing below would mean anything"
    assert "of-staging" in own[1]
    assert "of-main" not in text
    for name, answers in opened.items():
        for what, (code, said) in answers.items():
            assert code == 400 or is_refused(code, said), (name, what, code, said)


@pytest.mark.parametrize("namespace", [MAIN, "default"])
async def test_a_routers_token_cannot_touch_a_job(world: World, namespace: str) -> None:
    router = world.made.router_env
    _, listed = await world.ask(router, "nomad", "GET", f"jobs?namespace={MAIN}")
    served = next(job["ID"] for job in json.loads(listed) if "/" not in job["ID"])
    _, text = await world.ask(router, "nomad", "GET", f"job/{served}?namespace={MAIN}")
    changed = json.loads(text) | {"Namespace": namespace, "Priority": 70}
    where = f"?namespace={namespace}"
    for method, path, body in (
        ("POST", f"jobs{where}", parent("mine", Namespace=namespace)),
        ("POST", f"jobs{where}", {"Job": changed}),
        ("POST", f"job/{served}{where}", {"Job": changed}),
        ("POST", f"job/{served}/plan{where}", {"Job": changed}),
        ("DELETE", f"job/{served}{where}", None),
        ("DELETE", f"job/{served}{where}&purge=true", None),
    ):
        status, said = await world.ask(router, "nomad", method, path, body)
        assert (status, said) == (403, "Permission denied"), f"{method} {path}"
    _, after = await world.ask(router, "nomad", "GET", f"job/{served}?namespace={MAIN}")
    assert json.loads(after) == json.loads(text)
    assert (await world.router.get("shop-f.localhost"))[0] == 200


async def test_what_else_a_routers_tokens_do_not_give(world: World) -> None:
    router, replica = world.made.router_env, await world.replica()
    for server, method, path, body in (
        ("nomad", "GET", f"client/fs/cat/{replica}?path=app/secrets/00-db.json&namespace={MAIN}", None),
        ("nomad", "GET", f"client/fs/ls/{replica}?path=/&namespace={MAIN}", None),
        ("nomad", "GET", f"vars?namespace={MAIN}", None),
        ("nomad", "PUT", "namespace", {"Name": "mine"}),
        ("nomad", "GET", "acl/tokens", None),
        ("nomad", "POST", "acl/token", {"Name": "mine", "Type": "management"}),
        ("vault", "GET", "secret/data/modalnomad/main/db", None),
        ("vault", "GET", "secret/subkeys/modalnomad/main/db", None),
        ("vault", "POST", "secret/data/modalnomad/main/db", {"data": {"PASSWORD": "mine"}}),
        ("vault", "DELETE", "secret/metadata/modalnomad/main/db", None),
        ("vault", "POST", "secret/data/modalnomad-platform/key", {"data": {"key": "00" * 32}}),
        ("vault", "POST", "auth/token/create", {"policies": ["modalnomad-main"]}),
        ("vault", "POST", "auth/jwt-nomad/role/modalnomad-main", {"bound_claims": {}}),
        ("vault", "PUT", "sys/policies/acl/modalnomad-router", {"policy": ""}),
        ("consul", "PUT", "kv/modalnomad/apps/main/shop", b"mine"),
        ("consul", "DELETE", "kv/modalnomad/apps/main/shop", None),
        ("consul", "PUT", "kv/modalnomad/tokens/main/wk-mine", b"mine"),
        ("consul", "PUT", "kv/elsewhere", b"mine"),
        ("consul", "PUT", "agent/service/register", {"Name": "modalnomad-replica"}),
        ("consul", "GET", "acl/tokens", None),
    ):
        status, said = await world.ask(router, server, method, path, body)
        assert is_refused(status, said), (server, method, path, status, said)
    assert (await world.router.get("shop-f.localhost"))[0] == 200


async def test_a_deployers_tokens_end_where_the_platform_does(world: World) -> None:
    deployer, replica = world.made.env, await world.replica()
    for server, method, path, body in (
        ("nomad", "POST", "jobs", parent("mine", Namespace="default")),
        ("nomad", "POST", "jobs", parent("modalnomad-router", Namespace=ROUTERS)),
        ("nomad", "GET", "jobs?namespace=default", None),
        ("nomad", "GET", f"client/fs/cat/{replica}?path=app/secrets/00-db.json&namespace={MAIN}", None),
        ("nomad", "PUT", "namespace", {"Name": "modalnomad-mine"}),
        ("nomad", "POST", "acl/token", {"Name": "mine", "Type": "management"}),
        ("vault", "GET", "secret/data/modalnomad/main/db", None),
        ("vault", "GET", "secret/data/modalnomad/staging/db", None),
        ("vault", "POST", "secret/data/elsewhere/db", {"data": {"PASSWORD": "mine"}}),
        ("vault", "POST", "secret/data/modalnomad-platform/key", {"data": {"key": "00" * 32}}),
        ("vault", "DELETE", "secret/metadata/modalnomad-platform/key", None),
        ("vault", "POST", "auth/jwt-nomad/role/modalnomad-mine", {"bound_claims": {}}),
        ("vault", "PUT", "sys/policies/acl/modalnomad-deployer", {"policy": ""}),
        ("consul", "PUT", "kv/elsewhere", b"mine"),
        ("consul", "PUT", "agent/service/register", {"Name": "modalnomad-router"}),
        ("consul", "PUT", "acl/policy", {"Name": "mine", "Rules": 'acl = "write"'}),
    ):
        status, said = await world.ask(deployer, server, method, path, body)
        assert is_refused(status, said), (server, method, path, status, said)


async def test_people_of_one_environment_deploy_there_and_nowhere_else(world: World, tmp_path: Path) -> None:
    """With the policies that docs/operate/cluster-rights.md tells to copy."""
    env = await only_staging(world)
    await world.deploy("theirs", HELLO, "staging", env)
    await world.made.cli("secret", "create", "own", "A=1", "--env", "staging", env=env)
    assert (await world.router.get("staging--theirs-f.localhost"))[0] == 200
    await world.made.cli("app", "stop", "theirs", "--yes", "--env", "staging", env=env)

    file = world.made.folder / "shop.py"
    file.write_text(file.read_text().replace("hello", "theirs"))
    refused = await world.made.cli("deploy", str(file), "--env", "main", env=env, code=1)
    assert "403" in refused.stderr
    for command in (
        ("secret", "create", "more", "A=1", "--env", "main"),
        ("secret", "list", "--env", "main"),
        ("app", "stop", "shop", "--yes", "--env", "main"),
        ("token", "create", "--env", "main"),
    ):
        done = await world.made.cli(*command, env=env, code=1)
        assert "403" in done.stderr, command
    for server, method, path, body in (
        ("nomad", "GET", f"jobs?namespace={MAIN}", None),
        ("nomad", "POST", "jobs", parent("mine", Namespace=MAIN)),
        ("vault", "GET", "secret/subkeys/modalnomad/main/db", None),
        ("consul", "PUT", "kv/modalnomad/apps/main/shop", b"mine"),
        ("consul", "PUT", "kv/modalnomad/apps/staging-b/shop", b"mine"),
    ):
        status, said = await world.ask({**world.made.env, **env}, server, method, path, body)
        assert status == 403, (server, method, path, said)
    assert json.loads((await world.router.get("shop-f.localhost"))[1]) == "hello"


async def only_staging(world: World) -> dict[str, str]:
    """Tokens of people who may deploy to `staging`."""
    names = {"mount": "secret", "prefix": "modalnomad"}
    nomad, vault = (
        next(one["rules"] for one in filled(platform()[kind], names) if one["name"] == "modalnomad-deployer")
        for kind in ("nomad_policies", "vault_policies")
    )
    nomad_rules = json.dumps(nomad).replace("modalnomad-*", STAGING)
    vault_rules = json.dumps(vault).replace("/modalnomad/*", "/modalnomad/staging/*")
    made, calls = world.made, world.made.nomad.calls
    await calls.put("/v1/acl/policy/staging", {"Name": "staging", "Rules": nomad_rules})
    token = await calls.put("/v1/acl/token", {"Name": "staging", "Type": "client", "Policies": ["staging"]})
    return {
        "NOMAD_TOKEN": token["SecretID"],
        "VAULT_TOKEN": made.vault.token(made.vault.policy("staging-deployer", vault_rules), ttl="24h"),
        "CONSUL_HTTP_TOKEN": made.consul.token(CONSUL_OF_STAGING, "staging-deployer"),
    }


CONSUL_OF_STAGING = """
key_prefix "modalnomad/" { policy = "read" }
key_prefix "modalnomad/apps/staging/" { policy = "write" }
key_prefix "modalnomad/tokens/staging/" { policy = "write" }
key_prefix "modalnomad/locks/deploy-staging-" { policy = "write" }
key "modalnomad/apps/_guard" { policy = "write" }
key "modalnomad/tokens/_guard" { policy = "write" }
session_prefix "" { policy = "write" }
service "modalnomad-replica" { policy = "read" }
service "modalnomad-router" { policy = "read" }
node_prefix "" { policy = "read" }
agent_prefix "" { policy = "read" }
"""
