"""The platform's own key on a cluster: from it come the tickets that let routers, and nobody else, talk to replicas.
The first router makes it, or `setup`; whoever has read it once can start while Vault is away.

A key that is replaced stays beside the new one, as `previous`, while jobs and replicas made with it are about: routers
know both.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.vault.client import VaultClient, gone
from modalnomad.model.errors import BackendConflict, BackendError, BackendRefused, NotFound

logger = logging.getLogger("modalnomad.secrets")

PATH: Final = "modalnomad-platform/key"
FIELD: Final = "key"
PREVIOUS: Final = "previous"
LENGTH: Final = 32
"""Bytes."""
MARK_LENGTH: Final = 12
NOT_ALLOWED: Final = "modalnomad setup --only vault: it makes the key, and gives routers the right to (`create`)"


@dataclass(frozen=True, slots=True)
class PlatformKeys:
    """What jobs are made with now, and what may still be about."""

    key: bytes = field(repr=False)
    previous: bytes | None = field(default=None, repr=False)
    version: int = field(default=0, compare=False)
    """Of the record in Vault; 0: not known."""
    since: str = field(default="", compare=False)
    """When the record was last written, as Vault tells it: with `previous`, when that was replaced."""

    @property
    def all(self) -> tuple[bytes, ...]:
        """The newest first."""
        return (self.key,) if self.previous is None else (self.key, self.previous)

    @property
    def mark(self) -> str:
        """By which jobs that were made with `key` are known. It tells nothing of the key."""
        return hmac.new(self.key, b"mark of the platform key", hashlib.sha256).hexdigest()[:MARK_LENGTH]


async def read_keys(client: VaultClient) -> PlatformKeys | None:
    """None: there never was one. Raises BackendError; no part of what is stored stands in it."""
    place = f"{client.settings.mount}/{PATH}"
    answer = await client.request("GET", f"{client.settings.mount}/data/{PATH}", ok=(200, 404))
    try:
        data: Any = answer.json().get("data")
        if answer.status == 404 and data is None:
            return None
        if answer.status == 200:
            content, about = data["data"], data["metadata"]
            previous = content.get(PREVIOUS)
            return PlatformKeys(
                _decoded(str(content[FIELD])),
                None if previous is None else _decoded(str(previous)),
                int(about["version"]),
                str(about.get("created_time", "")),
            )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackendRefused(
            f"what Vault holds at {place} is no platform key: `{FIELD}`, and perhaps `{PREVIOUS}`, with {LENGTH} "
            "hexadecimal bytes",
            "restore an older version of it; without one, delete it, run `modalnomad setup --only vault`, restart the "
            "routers and deploy every App again",
        ) from None
    raise BackendRefused(
        f"the platform key at {place} was deleted, and older versions of it remain",
        "restore it (`bao kv undelete`), or remove it for good (`bao kv metadata delete`) and run it again",
    )


async def make_key(client: VaultClient) -> bool:
    """Create it unless it is there, whoever comes first; was it made now? Raises BackendError."""
    if await read_keys(client) is not None:
        return False
    try:
        await _write(client, {FIELD: secrets.token_hex(LENGTH)}, 0)
    except ServerRefused as error:
        # Somebody was faster: 400 says so, and 403 to a token that may `create` and not `update`.
        if error.status in {400, 403} and await read_keys(client) is not None:
            return False
        raise
    return True


async def rotate_key(client: VaultClient, found: PlatformKeys) -> None:
    """A new key; that of `found` stays as the previous one, and the one before it does not. Raises BackendConflict: it
    was changed since; BackendError."""
    await _replace(client, {FIELD: secrets.token_hex(LENGTH), PREVIOUS: found.key.hex()}, found)


async def forget_previous(client: VaultClient, found: PlatformKeys) -> None:
    """Only `found.key` is left. Raises as `rotate_key`."""
    await _replace(client, {FIELD: found.key.hex()}, found)


async def _replace(client: VaultClient, content: dict[str, str], found: PlatformKeys) -> None:
    try:
        await _write(client, content, found.version)
    except ServerRefused as error:
        if error.status == 400 and "check-and-set" in error.text:
            raise BackendConflict("somebody else changed the platform key at the same time", "look again") from error
        raise


async def _write(client: VaultClient, content: dict[str, str], version: int) -> None:
    body = {"data": content, "options": {"cas": version}}
    await client.request("POST", f"{client.settings.mount}/data/{PATH}", body, hidden=content.values())


async def platform_keys(client: VaultClient, cache: Path, *, make: bool = False) -> PlatformKeys:
    """From `cache` (0600, written at each reading) while Vault gives no useful answer, which is logged. `make`: the
    first one, where there is none. Raises NotFound: there is none; BackendError."""
    try:
        keys = await read_keys(client)
        if keys is None and make:
            keys = await _make_first(client)
    except BackendError as error:
        kept = await asyncio.to_thread(_cached, cache) if gone(error) else None
        if kept is None:
            raise
        logger.warning("%s: going on with the platform key kept in %s", error.message, cache)
        return kept
    if keys is None:
        raise NotFound(
            f"Vault holds no platform key at {client.settings.mount}/{PATH}",
            "the first router makes it when it starts (modalnomad router), and so does: modalnomad setup",
        )
    await keep(cache, keys)
    return keys


async def _make_first(client: VaultClient) -> PlatformKeys | None:
    try:
        if await make_key(client):
            logger.info("made the platform key at %s/%s", client.settings.mount, PATH)
    except ServerRefused as error:
        if error.status != 403:
            raise
        raise BackendRefused(
            f"Vault holds no platform key at {client.settings.mount}/{PATH}, and this token may not make it",
            NOT_ALLOWED,
        ) from error
    return await read_keys(client)


async def keep(cache: Path, keys: PlatformKeys) -> None:
    """For while Vault is away. Where it cannot be written, that is logged."""
    try:
        await asyncio.to_thread(_keep, cache, keys)
    except OSError as error:
        logger.warning("%s cannot be written: %s; while Vault is away, nothing can start here", cache, error.strerror)


def _decoded(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != LENGTH:
        raise ValueError
    return key


def _cached(path: Path) -> PlatformKeys | None:
    """One line for each key, the newest first. None: none, or not whole."""
    with suppress(OSError, ValueError):
        key, *before = map(_decoded, path.read_text("ascii").splitlines())
        if len(before) <= 1:
            return PlatformKeys(key, before[0] if before else None)
    return None


def _keep(path: Path, keys: PlatformKeys) -> None:
    """Written beside and renamed; only its owner reads it. The same keys are not written again."""
    if _cached(path) == keys:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write("\n".join(key.hex() for key in keys.all))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
