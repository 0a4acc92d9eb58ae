"""Vault or OpenBao: the key-value store, login by Nomad's identities with a role and a policy for each environment,
policies of people and routers, the platform key.

API: https://developer.hashicorp.com/vault/api-docs/system/mounts, …/system/auth, …/system/policies, …/auth/jwt
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.setup.jwks import believes, signer_of, unreadable
from modalnomad.hashicorp.setup.platform import Policy, Wanted
from modalnomad.hashicorp.setup.steps import Done, SomebodyElses, Todo, change, create
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.platform_key import PATH, make_key, read_keys

KEY_SOURCES: Final = ("jwks_url", "oidc_discovery_url", "jwt_validation_pubkeys", "jwks_pairs")
"""Where a login mount may have its keys from."""
UPGRADE_TRIES: Final = 40
UPGRADE_PAUSE: Final = 0.05
"""Seconds; a fresh store refuses its first requests for a moment."""


def vault_todos(client: VaultClient, wanted: Wanted, *, url_is_set: bool, nomad_ca: Path | None) -> Iterator[Todo]:
    """In order. `url_is_set`: vault.jwks_url was given, so it counts against what is there. `nomad_ca`: of what
    signed Nomad's certificate, for Vault to read its keys."""
    yield Todo(f"key-value store {wanted.mount}", partial(_store, client, wanted))
    yield Todo(f"login {wanted.auth_mount}", partial(_login, client, wanted))
    config = partial(_config, client, wanted, url_is_set, nomad_ca)
    yield Todo(f"keys of login {wanted.auth_mount}", config)
    for policy in wanted.vault_policies:
        yield Todo(f"policy {policy.name}", partial(_policy, client, policy))
    for name, fields in wanted.roles.items():
        role = partial(_role, client, wanted.auth_mount, name, fields)
        yield Todo(f"role {name}", role, fields["bound_claims"]["nomad_namespace"])
    if (router := wanted.router) is not None:
        role = partial(_role, client, wanted.auth_mount, router.vault_role, router.vault_role_fields)
        yield Todo(f"role {router.vault_role}", role)
    yield Todo(f"platform key {wanted.mount}/{PATH}", partial(_key, client))


async def _store(client: VaultClient, wanted: Wanted, dry: bool) -> Done:
    mount, fields = wanted.mount, wanted.mount_fields
    found = (await client.request("GET", "sys/mounts")).json()["data"].get(f"{mount}/")
    if found is None:
        return await create(dry, lambda: _make_store(client, mount, fields))
    if any((found.get("options") or {}).get(key) != value for key, value in fields["options"].items()) or (
        found.get("type") != fields["type"]
    ):
        raise SomebodyElses(
            f"Vault has something else at {mount}: {found.get('type')} {found.get('options') or ''}".rstrip(),
            f"take another place (vault.mount), or make a version 2 of it: `bao kv enable-versioning {mount}`",
        )
    return Done("there", _shared(found, fields["description"]))


def _shared(found: Mapping[str, Any], description: str) -> str:
    """Empty: it is as it would be made. Else it was there before, and serves others too."""
    text = str(found.get("description") or "")
    return "" if text == description else f"not made by this command ({text or 'no description'!r:.200}), used as it is"


async def _make_store(client: VaultClient, mount: str, fields: Mapping[str, Any]) -> None:
    await client.request("POST", f"sys/mounts/{mount}", fields)
    for left in reversed(range(UPGRADE_TRIES)):
        try:
            await client.request("GET", f"{mount}/config")
            return
        except ServerRefused as error:
            if error.status != 400 or not left:
                raise
        await asyncio.sleep(UPGRADE_PAUSE)


async def _login(client: VaultClient, wanted: Wanted, dry: bool) -> Done:
    found = (await client.request("GET", "sys/auth")).json()["data"].get(f"{wanted.auth_mount}/")
    if found is None:
        body = {"type": wanted.auth_type, "description": wanted.auth_description}
        return await create(dry, lambda: client.request("POST", f"sys/auth/{wanted.auth_mount}", body))
    if found.get("type") != wanted.auth_type:
        raise SomebodyElses(
            f"Vault has something else at auth/{wanted.auth_mount}: {found.get('type')}",
            "take another place (vault.auth_mount, and jwt_auth_backend_path of Nomad's agents)",
        )
    return Done("there", _shared(found, wanted.auth_description))


async def _config(client: VaultClient, wanted: Wanted, url_is_set: bool, nomad_ca: Path | None, dry: bool) -> Done:
    url = str(wanted.auth_config["jwks_url"])
    config = dict(wanted.auth_config)
    if (ca := await signer_of(url, nomad_ca)) is not None:
        config["jwks_ca_pem"] = ca
    path = f"auth/{wanted.auth_mount}/config"
    # 403 also where there is no such mount yet.
    answer = await client.request("GET", path, ok=(200, 400, 404, 403) if dry else (200, 400, 404))
    found: Mapping[str, Any] = answer.json().get("data") or {} if answer.status == 200 else {}
    if not any(found.get(source) for source in KEY_SOURCES):
        return await create(dry, lambda: _write_config(client, path, config), f"from {url}")
    if found.get("jwks_url") == url:
        if believes(found.get("jwks_ca_pem"), ca):
            return Done("there", f"from {url}")
        # Whole, or Vault forgets the rest: others log in there too, perhaps with its `default_role`.
        whole = {name: value for name, value in found.items() if value} | {"jwks_ca_pem": ca}
        detail = f"it believed others than who signed {url}"
        return await change(dry, lambda: _write_config(client, path, whole), detail)
    source = found.get("jwks_url") or next(name for name in KEY_SOURCES if found.get(name))
    if not url_is_set:
        return Done("left", f"it has its keys from {source}", f"for {url} instead, set vault.jwks_url to that")
    return await change(dry, lambda: _write_config(client, path, config), f"from {url} instead of {source}")


async def _write_config(client: VaultClient, path: str, config: Mapping[str, Any]) -> None:
    try:
        await client.request("POST", path, config)
    except ServerRefused as error:
        if error.status != 400 or "jwks" not in error.text:
            raise
        raise unreadable("Vault", str(config["jwks_url"]), error, config.get("jwks_ca_pem")) from error


async def _policy(client: VaultClient, policy: Policy, dry: bool) -> Done:
    path = f"sys/policies/acl/{policy.name}"
    answer = await client.request("GET", path, ok=(200, 404))
    body = {"policy": policy.text}
    if answer.status == 404:
        return await create(dry, lambda: client.request("PUT", path, body))
    if policy.same(str(answer.json()["data"]["policy"])):
        return Done("there")
    return await change(dry, lambda: client.request("PUT", path, body), "its rules were different")


async def _role(client: VaultClient, mount: str, name: str, fields: Mapping[str, Any], dry: bool) -> Done:
    path = f"auth/{mount}/role/{name}"
    answer = await client.request("GET", path, ok=(200, 404))
    if answer.status == 404:
        return await create(dry, lambda: client.request("POST", path, fields))
    found = answer.json()["data"]
    different = [field for field, value in fields.items() if _alike(found.get(field)) != _alike(value)]
    if not different:
        return Done("there")
    detail = f"different: {', '.join(different)}"
    return await change(dry, lambda: client.request("POST", path, fields), detail)


def _alike(value: Any) -> Any:
    """One claim to match is the same as a list of one, which Terraform writes."""
    if isinstance(value, dict):
        return {key: [item] if isinstance(item, str) else item for key, item in value.items()}
    return value


async def _key(client: VaultClient, dry: bool) -> Done:
    if dry:
        return Done("would make" if await read_keys(client) is None else "there")
    return Done("made" if await make_key(client) else "there")
