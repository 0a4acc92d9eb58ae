"""What the token lacks that `setup` was refused with: asked of the server once, told with each step it was refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.hashicorp.setup.platform import ServerName
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.model.errors import BackendError

ANONYMOUS: Final = ("anonymous", "00000000-0000-0000-0000-000000000002")
"""Accessor of who gives no token, in Nomad and in Consul."""
NEEDED: Final = {
    "nomad": "a management token",
    "consul": 'a token with `acl = "write"`, such as one of global-management',
}

VAULT_NEEDED: Final[Mapping[str, str]] = {
    "sys/mounts": "read",
    "sys/mounts/${mount}": "create, update",
    "${mount}/config": "read",
    "sys/auth": "read",
    "sys/auth/${auth_mount}": "create, update, sudo",
    "auth/${auth_mount}/config": "read, create, update",
    "auth/${auth_mount}/role/modalnomad-*": "read, create, update",
    "sys/policies/acl/modalnomad-*": "read, create, update",
    "${mount}/data/modalnomad-platform/key": "read, create, update",
}
"""The least with which all is made in Vault, and the platform's key replaced (`update`): path → capabilities."""


class Lacking:
    """Of one server. `client`: as whom it was asked."""

    def __init__(self, server: ServerName, client: HttpClient | VaultClient) -> None:
        self._server = server
        self._client = client
        self._told: str | None = None

    async def told(self, error: ServerRefused) -> str:
        """What to do about a refusal for want of rights. Raises nothing: then it is what the error says itself."""
        try:
            if isinstance(self._client, VaultClient):
                return await self._of_vault(self._client, error)
            if self._told is None:
                self._told = await self._of_nomad_or_consul(self._client)
            return self._told
        except (BackendError, ValueError):
            return error.hint or ""

    async def _of_nomad_or_consul(self, http: HttpClient) -> str:
        """Neither tells, to whom it does not know, whether its ACLs were ever bootstrapped."""
        name, source = http.server.name, http.server.token_setting or http.server.setting
        needs = f"`setup` needs {NEEDED[self._server]}"
        first = f"where ACLs are on and no token was ever made, `{self._server} acl bootstrap` makes the first"
        # Consul answers 404 to who is unknown, and 404 too where no token is given; before 1.15, 403.
        answer = await http.request("GET", "/v1/acl/token/self", ok=(200, 403, 404))
        if answer.status != 200 and http.server.headers():
            return f"{name} does not know the token of {source}, or it has expired: {needs}; {first}"
        who: dict[str, Any] = answer.json() if answer.status == 200 else {}
        if answer.status != 200 or who.get("AccessorID") in ANONYMOUS:
            return f"no token is given: {needs}, as {source}; {first}"
        policies = [str(one.get("Name")) if isinstance(one, dict) else str(one) for one in who.get("Policies") or ()]
        return f"{needs}; that of {source} has {'the policies ' + ', '.join(policies) if policies else 'no policies'}"

    async def _of_vault(self, client: VaultClient, error: ServerRefused) -> str:
        """Its errors say which right of which path. What it does not know it refuses with the same words."""
        if self._told is None and not client.token:
            self._told = ""
        if self._told is None:
            known = await client.request("GET", "auth/token/lookup-self", ok=(200, 403))
            unknown = "Vault does not know this token, or it lacks the policy `default` too; "
            self._told = unknown if known.status == 403 else ""
        return self._told + (error.hint or "")
