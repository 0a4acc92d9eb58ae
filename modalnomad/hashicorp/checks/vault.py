"""Vault or OpenBao: is it unsealed, is what `setup` makes there, and what may our token?"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from modalnomad.hashicorp.checks.common import check_version
from modalnomad.hashicorp.checks.key import check_key
from modalnomad.hashicorp.http import Answer, HttpClient, Server
from modalnomad.hashicorp.setup.platform import jwks_url
from modalnomad.hashicorp.tls import trust_of
from modalnomad.hashicorp.vault.client import HEALTH, VaultClient, words
from modalnomad.hashicorp.vault.platform_key import PATH
from modalnomad.hashicorp.vault.secrets import ROOT
from modalnomad.kit.finding import Finding, ok, problem, warning
from modalnomad.model.errors import BackendError, BackendUnreachable
from modalnomad.model.ids import env_flag
from modalnomad.render.cluster import vault_role
from modalnomad.settings import Settings

LEAST: Final = {"Vault": "1.11.0", "OpenBao": "2.0.0"}
"""`subkeys`, and versions that Nomad takes."""
TRIED: Final = {"OpenBao": "2.7.2"}
HEALTHS: Final = (200, 429, 472, 473, 501, 503)
DAY: Final = 86400
PROBE: Final = "doctor-probe"
KEYS_LIMIT: Final = 5.0
"""Seconds for Nomad's public keys."""


async def vault_checks(client: VaultClient, settings: Settings, environment: str) -> list[Finding]:
    """All of them. Raises BackendError when it does not answer at all."""
    found = await _health(client)
    if any(finding.level == "problem" for finding in found):
        return found
    found += await _token(client)
    capabilities = await _capabilities(client, environment)
    found.append(check_rights(capabilities, client.settings.mount, environment))
    found.append(await _store(client))
    found.append(await check_key(client, settings))
    found.append(await _identity(client, environment))
    found.append(await _keys_of_nomad(settings))
    return found


async def _health(client: VaultClient) -> list[Finding]:
    answer = await client.request("GET", HEALTH, ok=HEALTHS)
    try:
        body: Mapping[str, Any] = answer.json()
    except ValueError:
        body = {}
    version = str(body.get("version", ""))
    # OpenBao forked at 1.14 and counts from 2.0; Vault's own 2.x has builds of `enterprise` or a `license`.
    name = "OpenBao" if version.startswith("2.") and "enterprise" not in body else "Vault"
    shown = f"{name} {version}".strip()
    if answer.status == 503:
        return [problem("vault", f"{shown} is sealed", "`bao operator unseal` or `vault operator unseal`")]
    if answer.status == 501:
        return [problem("vault", f"{shown} is not initialised", "`bao operator init`, then unseal it")]
    standby = ", a standby that passes requests on" if answer.status != 200 else ""
    found = [ok("vault", f"{shown} answers at {client.address}{standby}")]
    if old := check_version("vault", name, version, LEAST[name], TRIED.get(name, "")):
        found.append(old)
    return found


async def _token(client: VaultClient) -> list[Finding]:
    """How long it lives; nothing when it may not ask."""
    answer = await client.request("GET", "auth/token/lookup-self", ok=(200, 403))
    if answer.status == 403:
        # `permission denied` is said of unknown tokens, and of those without the policy `default`.
        return []
    data = answer.json()["data"]
    ttl, period = int(data.get("ttl") or 0), int(data.get("period") or 0)
    if 0 < ttl < DAY and not (period and data.get("renewable")):
        how = "unless it is renewed, and some day for good" if data.get("renewable") else "and cannot be renewed"
        return [
            warning(
                "vault acl",
                f"the token ends in {ttl // 3600} h {ttl % 3600 // 60} min, {how}",
                "for a router make one with a period, which it renews: vault token create -orphan -period 24h …",
            )
        ]
    return []


async def _capabilities(client: VaultClient, environment: str) -> Mapping[str, Sequence[str]] | None:
    """By path; None: it may not ask."""
    mount = client.settings.mount
    paths = [f"{mount}/{kind}/{ROOT}/{environment}/{PROBE}" for kind in ("data", "metadata", "subkeys")]
    body = {"paths": [*paths, f"{mount}/data/{PATH}"]}
    answer = await client.request("POST", "sys/capabilities-self", body, ok=(200, 403))
    if answer.status == 403:
        return None
    found: Mapping[str, Sequence[str]] = answer.json()["data"]
    return found


def check_rights(found: Mapping[str, Sequence[str]] | None, mount: str, environment: str) -> Finding:
    """Pure. Capabilities: create, read, update, list, delete, root, deny …"""
    roles = "give a token with the policy modalnomad-deployer or modalnomad-router (`modalnomad setup`): VAULT_TOKEN"
    if found is None:
        return problem(
            "vault acl",
            "Vault does not know this token, or it lacks the policy `default` and cannot be looked at",
            roles,
        )

    def may(kind: str, *wanted: str) -> bool:
        granted = set(found.get(f"{mount}/{kind}", ()))
        return "root" in granted or granted >= set(wanted)

    here = f"{ROOT}/{environment}/{PROBE}"
    deploys = may(f"data/{here}", "create", "update") and may(f"subkeys/{here}", "read")
    routes = may(f"metadata/{here}", "read")
    if not may(f"data/{PATH}", "read"):
        return problem("vault acl", f"the token may not read the platform key {mount}/{PATH}", roles)
    if not deploys and not routes:
        return problem("vault acl", f"the token may neither write secrets of {environment} nor see versions", roles)
    words = [word for right, word in ((deploys, "write secrets"), (routes, "see their versions")) if right]
    if may(f"data/{here}", "read"):
        return warning("vault acl", f"the token may read values of secrets ({', '.join(words)})", roles)
    return ok("vault acl", f"the token may {', '.join(words)}, and not read values")


async def _store(client: VaultClient) -> Finding:
    mount = client.settings.mount
    answer = await client.request("GET", f"sys/internal/ui/mounts/{mount}", ok=(200, 403))
    if answer.status == 403:
        return warning(
            "secrets",
            f"whether there is a store at {mount} cannot be seen: the token has no right in it, or it is not there",
            "`modalnomad setup --only vault` makes it; its name comes from vault.mount",
        )
    data = answer.json()["data"]
    if data.get("type") == "kv" and (data.get("options") or {}).get("version") == "2":
        return ok("secrets", f"a key-value store of version 2 at {mount}")
    return problem(
        "secrets",
        f"what is at {mount} is no key-value store of version 2",
        f"`bao kv enable-versioning {mount}`, or another vault.mount and `modalnomad setup --only vault`",
    )


def _not_signed() -> str:
    """An identity in form, that nobody signed: to refuse it, Vault has to read Nomad's keys."""
    parts = b'{"alg":"RS256","typ":"JWT"}', b'{"aud":"vault.io","sub":"doctor-probe"}', bytes(256)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


async def _identity(client: VaultClient, environment: str) -> Finding:
    """A login with what is no identity: how it is refused tells what is there, and needs no right."""
    mount, role = client.settings.auth_mount, vault_role(environment)
    body = {"role": role, "jwt": _not_signed()}
    reach = "Vault itself asks there: give an address it reaches (vault.jwks_url, then modalnomad setup --only vault)"
    try:
        answer = await client.request("POST", f"auth/{mount}/login", body, ok=(200, 400, 403, 404, 500))
    except BackendUnreachable as error:
        what = "perhaps it waits for Nomad's public keys"
        return problem("identity", f"replicas get no secrets: {error.message}; {what}", reach)
    said = words(answer)
    fix = f"modalnomad setup --only vault{env_flag(environment)}"
    if answer.status in {403, 404}:
        return problem("identity", f"Vault has no login for Nomad's identities at auth/{mount}", fix)
    if "could not be found" in said:
        return problem("identity", f"the login has no role {role}: replicas get no secrets", fix)
    if "could not load configuration" in said or "not configured" in said:
        return problem("identity", f"the login auth/{mount} has no keys to check identities with", fix)
    if "fetching keys" in said:
        why = said.rpartition("fetching keys")[2].strip()
        return problem("identity", f"Vault cannot read Nomad's public keys, replicas get no secrets: {why}", reach)
    return ok("identity", f"tasks can log in at auth/{mount} with the role {role}")


async def _keys_of_nomad(settings: Settings) -> Finding:
    """From here; Vault reads them itself, from where it is."""
    url = jwks_url(settings)
    try:
        answer = await _as_vault_asks(settings, url)
        keys = answer.json().get("keys")
    except (BackendError, ValueError, AttributeError) as error:
        why = error.message if isinstance(error, BackendError) else "what is there is not JSON of keys"
        return warning(
            "jwks",
            f"Nomad's public keys cannot be read at {url} from here: {why}",
            "where Vault is they must be, without a certificate of the reader's: vault.jwks_url, and Nomad's servers "
            "running",
        )
    if answer.status != 200 or not keys:
        return warning("jwks", f"{url} answers {answer.status} without keys", "give Nomad's own: vault.jwks_url")
    return ok("jwks", f"Nomad shows {len(keys)} public keys at {url}")


async def _as_vault_asks(settings: Settings, url: str) -> Answer:
    """It shows no certificate, and believes one for the host of the URL alone. Raises BackendError."""
    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}"
    trust = replace(trust_of(settings.nomad, "nomad", shows=False), server_name=None)
    http = HttpClient(Server("Nomad", base, "vault.jwks_url", trust=trust))
    try:
        return await http.request("GET", url.removeprefix(base), ok=tuple(range(100, 600)), limit=KEYS_LIMIT)
    finally:
        await http.close()
