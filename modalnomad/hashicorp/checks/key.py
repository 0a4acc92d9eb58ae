"""The platform key: is it there, and does anybody still need the one before it?"""

from __future__ import annotations

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.hashicorp.key_use import KeyUse, key_use
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.platform_key import PATH, PlatformKeys, read_keys
from modalnomad.kit.finding import Finding, ok, problem, warning
from modalnomad.model.errors import BackendError, BackendRefused
from modalnomad.settings import Settings


async def check_key(client: VaultClient, settings: Settings) -> Finding:
    """Raises BackendError when Vault does not answer."""
    try:
        keys = await read_keys(client)
    except ServerRefused as error:
        if error.status != 403:
            raise
        return warning("key", "whether the platform key is there cannot be seen with this token", "see `vault acl`")
    except BackendRefused as error:
        return problem("key", error.message, error.hint or "")
    if keys is None:
        return problem(
            "key",
            f"there is no platform key at {client.settings.mount}/{PATH}",
            "the first router makes it when it starts, and so does: modalnomad setup --only vault",
        )
    return check_kept(keys, await _use(settings, keys) if keys.previous is not None else KeyUse())


def check_kept(keys: PlatformKeys, use: KeyUse | None) -> Finding:
    """`use`: of the previous one; None: that cannot be told."""
    if keys.previous is None:
        return ok("key", "the platform key is there")
    kept = f"the platform key was rotated at {keys.since.partition('.')[0]} UTC, and the one before it still holds"
    if use is None:
        return warning("key", f"{kept}; who needs it cannot be told", "see what is said of Nomad and Consul")
    if str(use):
        return warning("key", f"{kept}: {use}", f"{use.cure}; then: modalnomad setup --forget-previous-key")
    return warning("key", f"{kept}, though nobody needs it", "modalnomad setup --forget-previous-key")


async def _use(settings: Settings, keys: PlatformKeys) -> KeyUse | None:
    try:
        nomad, consul = HttpClient(nomad_server(settings.nomad)), HttpClient(consul_server(settings.consul))
    except BackendError:
        return None
    try:
        return await key_use(NomadApi(nomad), ConsulApi(consul), settings.consul.prefix, keys.mark)
    except BackendError:
        return None
    finally:
        await nomad.close()
        await consul.close()
