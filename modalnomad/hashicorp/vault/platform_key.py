"""The platform's own key on a cluster: from it come the tickets that let routers, and nobody else, talk to replicas.
`setup` makes it; whoever has read it once can start while Vault is away."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.vault.client import VaultClient, gone
from modalnomad.model.errors import BackendError, BackendRefused, NotFound

logger = logging.getLogger("modalnomad.secrets")

PATH: Final = "modalnomad-platform/key"
FIELD: Final = "key"
LENGTH: Final = 32
"""Bytes."""


async def read_key(client: VaultClient) -> bytes | None:
    """None: none was made yet. Raises BackendError; no part of what is stored stands in it."""
    answer = await client.request("GET", f"{client.settings.mount}/data/{PATH}", ok=(200, 404))
    if answer.status == 404:
        return None
    try:
        return _decoded(str(answer.json()["data"]["data"][FIELD]))
    except (ValueError, KeyError, TypeError):
        raise BackendRefused(
            f"what Vault holds at {client.settings.mount}/{PATH} is no platform key: `{FIELD}` with {LENGTH} "
            "hexadecimal bytes",
            "restore an older version of it; without one, delete it, run `modalnomad setup --only vault`, restart the "
            "routers and deploy every App again",
        ) from None


async def make_key(client: VaultClient) -> bool:
    """Create it unless it is there, whoever comes first; was it made now? Raises BackendError."""
    if await read_key(client) is not None:
        return False
    key = secrets.token_hex(LENGTH)
    content = {"data": {FIELD: key}, "options": {"cas": 0}}
    try:
        await client.request("POST", f"{client.settings.mount}/data/{PATH}", content, hidden=[key])
    except ServerRefused as error:
        if error.status == 400 and "check-and-set" in error.text:
            if await read_key(client) is None:
                raise BackendRefused(
                    f"the platform key at {client.settings.mount}/{PATH} was deleted, and older versions of it remain",
                    "restore it (`bao kv undelete`), or remove it for good (`bao kv metadata delete`) and run it again",
                ) from error
            return False
        raise
    return True


async def platform_key(client: VaultClient, cache: Path) -> bytes:
    """The key; from `cache` (0600, written at each reading) while Vault gives no useful answer, which is logged.
    Raises NotFound when `setup` never ran, BackendError."""
    try:
        key = await read_key(client)
    except BackendError as error:
        kept = await asyncio.to_thread(_cached, cache) if gone(error) else None
        if kept is None:
            raise
        logger.warning("%s: going on with the platform key kept in %s", error.message, cache)
        return kept
    if key is None:
        raise NotFound(
            f"Vault holds no platform key at {client.settings.mount}/{PATH}",
            "make it, and what else a cluster needs: modalnomad setup",
        )
    try:
        await asyncio.to_thread(_keep, cache, key)
    except OSError as error:
        logger.warning("%s cannot be written: %s; while Vault is away, nothing can start here", cache, error.strerror)
    return key


def _decoded(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != LENGTH:
        raise ValueError
    return key


def _cached(path: Path) -> bytes | None:
    """None: none, or not a whole one."""
    with suppress(OSError, ValueError):
        return _decoded(path.read_text("ascii"))
    return None


def _keep(path: Path, key: bytes) -> None:
    """Written beside and renamed; only its owner reads it. The same key is not written again."""
    if _cached(path) == key:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.hex())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
