"""A task's way to Vault: login with its workload identity, reads of its templates; waits and texts of Nomad 2.0.5."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

LOGIN_WAITS: Final = (1.2, 2.4)
"""Seconds between the tries of a login that nobody answered, or that was answered 5xx."""
LIMIT: Final = 60.0
"""Seconds for one answer."""


class Denied(Exception):
    """Text as Nomad tells it."""


class Missing(Exception):
    """A secret that is not there now; text as the last try tells it."""


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """What an agent's `vault` block says."""

    address: str
    path: str = "jwt-nomad"
    role: str = "nomad-workloads"
    """Of tasks that name none."""
    waits: Sequence[float] = LOGIN_WAITS
    retries: Sequence[float] = (0.1, 0.2, 0.4)
    """Seconds between the tries to read a secret. Nomad's own: 12, from 0.25 s doubling up to 60."""


async def login(session: aiohttp.ClientSession, access: VaultAccess, role: str, identity: str) -> str:
    """The task's token. Raises Denied."""
    url = f"{access.address}/v1/auth/{access.path}/login"
    waits = [*access.waits]
    while True:
        try:
            status, body = await _ask(session, "PUT", url, json={"role": role or access.role, "jwt": identity})
        except _Unanswered as error:
            status, text = 500, f'Put "{url}": {error}'
        else:
            if status == 200:
                return str(body["auth"]["client_token"])
            text = _refusal("PUT", url, status, body)
        if status < 500 or not waits:
            raise Denied(f"failed to derive Vault token for identity vault_default: failed to login with JWT: {text}")
        await asyncio.sleep(waits.pop(0))


async def read(session: aiohttp.ClientSession, access: VaultAccess, token: str, path: str) -> Any:
    """What `.Data` is in a template. Raises Missing."""
    url = f"{access.address}/v1/{path}"
    name = f"vault.read({path})"
    try:
        status, body = await _ask(session, "GET", url, headers={"X-Vault-Token": token} if token else {})
    except _Unanswered as error:
        raise Missing(f'{name}: {name}: Get "{url}": {error}') from error
    if status == 200:
        return body["data"]
    if status == 404:
        raise Missing(f"{name}: no secret exists at {path}")
    raise Missing(f"{name}: {name}: {_refusal('GET', url, status, body)}")


class _Unanswered(Exception):
    pass


async def _ask(session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> tuple[int, Mapping[str, Any]]:
    try:
        async with session.request(method, url, timeout=aiohttp.ClientTimeout(total=LIMIT), **more) as response:
            return response.status, await response.json(content_type=None) or {}
    except aiohttp.ClientConnectorError as error:
        raise _Unanswered(f"dial tcp {urlsplit(url).netloc}: connect: connection refused") from error
    except aiohttp.ClientError as error:
        raise _Unanswered("EOF") from error
    except TimeoutError as error:
        raise _Unanswered("context deadline exceeded") from error


def _refusal(method: str, url: str, status: int, body: Mapping[str, Any]) -> str:
    errors = "".join(f"* {each}\n" for each in body.get("errors") or []).rstrip("\n")
    return f"Error making API request.\n\nURL: {method} {url}\nCode: {status}. Errors:\n\n{errors}"
