"""All that lies in the servers of a cluster, read through their APIs, so that two of them can be compared.

before = await objects(c)
await platform.terraform("apply", "-auto-approve")
made = different(before, await objects(c))           # {"nomad namespace modalnomad-main": (None, {…}), …}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from tests.support.cluster import Cluster

OF_ONE_SERVER: Final = {
    *("CreateIndex", "ModifyIndex", "JobModifyIndex", "Hash", "ID", "AccessorID", "CreateTime", "CreateDate"),
    *("ModifyTime", "SubmitTime", "RulesJSON", "SecretID", "SecretIDHash"),
    *("accessor", "uuid", "modified", "running_sha256"),
}
"""Keys whose values are other ones each time, or follow from others."""


class Api:
    """One server, with all rights."""

    def __init__(self, session: aiohttp.ClientSession, address: str, header: str, token: str) -> None:
        self._session, self._address, self._headers = session, address, {header: token}

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Its answer, decoded; None where there is nothing at this path. Fails when it is refused."""
        async with self._session.request(method, self._address + path, headers=self._headers, json=body) as answer:
            text = await answer.text()
            if answer.status == 404:
                return None
            assert answer.status < 300, f"{method} {path}: {answer.status} {text}"
            return json.loads(text) if text else None

    async def get(self, path: str) -> Any:
        """Of a GET."""
        return await self.call("GET", path)


class Apis:
    """Of all three servers of a cluster; to be opened."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._session = aiohttp.ClientSession()
        of = self._session
        self.nomad = Api(of, cluster.nomad.address, "X-Nomad-Token", cluster.nomad.token)
        self.consul = Api(of, cluster.consul.address, "X-Consul-Token", cluster.consul.management)
        self.vault = Api(of, cluster.vault.address, "X-Vault-Token", cluster.vault.root_token)

    async def __aenter__(self) -> Apis:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


async def objects(cluster: Cluster) -> dict[str, Any]:
    """By server, kind and name. Addresses of the servers are replaced by their names; secrets by their keys."""
    async with Apis(cluster) as apis:
        found = {
            **{f"nomad {name}": value for name, value in (await _nomad(apis.nomad)).items()},
            **{f"vault {name}": value for name, value in (await _vault(apis.vault)).items()},
            **{f"consul {name}": value for name, value in (await _consul(apis.consul)).items()},
        }
    return {name: _comparable(value, cluster) for name, value in sorted(found.items())}


def different(
    before: Mapping[str, Any], after: Mapping[str, Any], *ignored: str
) -> dict[str, tuple[Any | None, Any | None]]:
    """What is not the same in both: each as it was and as it is, None where it was not there. `ignored`: beginnings of
    names."""
    names = sorted(before.keys() | after.keys())
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name) and not name.startswith(ignored)
    }


async def _nomad(api: Api) -> dict[str, Any]:
    found = {"scheduler": (await api.get("/v1/operator/scheduler/configuration"))["SchedulerConfig"]}
    for one in await api.get("/v1/acl/policies"):
        found[f"policy {one['Name']}"] = await api.get(f"/v1/acl/policy/{one['Name']}")
    for one in await api.get("/v1/namespaces"):
        found[f"namespace {one['Name']}"] = await api.get(f"/v1/namespace/{one['Name']}")
    for kind in ("token", "role", "auth-method", "binding-rule"):
        for one in await api.get(f"/v1/acl/{kind}s"):
            found[f"{kind} {one.get('Name') or one.get('Description')}"] = one
    for one in await api.get("/v1/jobs?namespace=*"):
        found[f"job {one['Namespace']}/{one['ID']}"] = one["Status"]
    for one in await api.get("/v1/vars?namespace=*"):
        found[f"variable {one['Namespace']}/{one['Path']}"] = {}
    return found


async def _vault(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (await api.get("/v1/sys/policies/acl?list=true"))["data"]["keys"]:
        if name != "root":
            found[f"policy {name}"] = (await api.get(f"/v1/sys/policies/acl/{name}"))["data"]["policy"]
    for path, one in (await api.get("/v1/sys/auth"))["data"].items():
        found[f"auth {path}"] = one
        if one["type"] == "jwt":
            found[f"auth {path}config"] = (await api.get(f"/v1/auth/{path}config") or {}).get("data")
            for name in (await api.get(f"/v1/auth/{path}role?list=true") or {"data": {"keys": []}})["data"]["keys"]:
                role = (await api.get(f"/v1/auth/{path}role/{name}"))["data"]
                # Terraform's provider writes a list of one, which lets in the same.
                claims = {key: one if isinstance(one, list) else [one] for key, one in role["bound_claims"].items()}
                found[f"role {path}{name}"] = role | {"bound_claims": claims}
    for path, one in (await api.get("/v1/sys/mounts"))["data"].items():
        found[f"mount {path}"] = one
        if one["type"] == "kv":
            found |= {f"secret {secret}": keys for secret, keys in (await _secrets(api, path)).items()}
    return found


async def _secrets(api: Api, mount: str, folder: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    listed = await api.get(f"/v1/{mount}metadata/{folder}?list=true")
    for name in listed["data"]["keys"] if listed else ():
        if name.endswith("/"):
            found |= await _secrets(api, mount, folder + name)
        else:
            secret = await api.get(f"/v1/{mount}data/{folder}{name}")
            found[f"{mount}{folder}{name}"] = sorted(secret["data"]["data"])
    return found


async def _consul(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in await api.get("/v1/acl/policies"):
        found[f"policy {one['Name']}"] = await api.get(f"/v1/acl/policy/{one['ID']}")
    for one in await api.get("/v1/acl/roles"):
        found[f"role {one['Name']}"] = one
    for one in await api.get("/v1/acl/auth-methods"):
        found[f"auth method {one['Name']}"] = await api.get(f"/v1/acl/auth-method/{one['Name']}")
    for one in await api.get("/v1/acl/binding-rules"):
        found[f"binding rule {one['Description']}"] = one
    for one in await api.get("/v1/acl/tokens"):
        found[f"token {one['Description'].partition(':')[0]}"] = one | {"Description": ""}
    return found


def _comparable(value: Any, cluster: Cluster) -> Any:
    if isinstance(value, dict):
        each = {key: _comparable(one, cluster) for key, one in value.items() if key not in OF_ONE_SERVER}
        # To the servers nothing and an empty one are the same.
        return {key: one for key, one in each.items() if one not in (None, "", [], {})}
    if isinstance(value, list):
        return [_comparable(each, cluster) for each in value]
    if isinstance(value, str):
        for server in ("nomad", "consul", "vault"):
            value = value.replace(getattr(cluster, server).address, server.upper())
    return value
