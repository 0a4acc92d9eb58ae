"""Secrets in a key-value store, version 2, of Vault or OpenBao. Rights to write, list and see key names are enough: no
value is ever read back. Values reach replicas from the server itself (docs/decisions/secrets-as-files.md).

API: https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from modalnomad.hashicorp.http import Answer, ServerRefused
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.model.errors import BackendConflict, BackendRefused, BackendUnreachable, UserError
from modalnomad.model.ids import SECRET_NAME
from modalnomad.model.manifest import SecretRef
from modalnomad.model.secret_rules import (
    check_digest,
    check_environment,
    check_name,
    check_present,
    check_values,
    exists_already,
    not_there,
)
from modalnomad.ports.secrets import SecretInfo, Secrets
from modalnomad.settings import VaultSettings

ROOT: Final = "modalnomad"
ANONYMOUS: Final = "_anonymous"
"""Folder in each environment; no secret can have this name."""
KEYS_LIMIT: Final = 400
"""Keys of one secret: the server takes 1,000 texts in a request, keys and values counted."""
SIZE_LIMIT: Final = 700_000
"""Bytes of one secret as the JSON file that a task reads. The server stores 1 MiB, and a task's `secrets/` holds 1 MB
of all its secrets."""
FRESH: Final = 1800.0
"""Seconds for which stored values of a program count as stored now: half of the time in which pruning leaves alone what
was put."""
SHORT_WAIT: Final = 0.05
"""Seconds between two tries on a store that is being made."""
TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Stored:
    """What the metadata of one path say."""

    version: int
    """The latest; 0: none was written."""
    live: bool
    """It is there: neither deleted nor destroyed."""
    created_at: float
    updated_at: float
    """Of the latest version."""


class VaultSecrets(Secrets):
    """Port `Secrets`. `close` it."""

    def __init__(self, settings: VaultSettings, client: VaultClient | None = None) -> None:
        self._mount = settings.mount
        self._client = client or VaultClient(settings)
        self._looked = False

    async def close(self) -> None:
        """Of its client too."""
        await self._client.close()

    async def check(self, refs: Sequence[SecretRef], environment: str) -> None:
        """Raises SecretMissing as the port says; UserError for a secret of another environment: the tasks of one
        environment can log in for its secrets only."""
        found = []
        for ref in dict.fromkeys(refs):
            where = ref.environment or environment
            path = _path(ref, where)
            found.append((ref, where, None if path is None else await self._keys(path)))
        check_present(found)
        foreign = sorted(f"{ref.name} of {where}" for ref, where, _ in found if where != environment)
        if foreign:
            raise UserError(
                f"an App of environment {environment} cannot use secrets of another one: {', '.join(foreign)}",
                f"create them in {environment} too: on a cluster a replica may read its own environment's alone",
            )

    async def create(
        self, name: str, environment: str, values: Mapping[str, str], *, replace: bool = False
    ) -> SecretInfo:
        """Raises UserError for a bad name, key or value, BackendConflict when it exists and `replace` is False, or when
        somebody else wrote it meanwhile."""
        check_name(name)
        path = f"{ROOT}/{check_environment(environment)}/{name}"
        _check_storable(values, f"secret {name}")
        before = await self._stored(path)
        if before is not None and before.live and not replace:
            raise exists_already(name, environment)
        written = await self._write(path, values, before.version if before else 0)
        if written is None:
            if not replace:
                raise exists_already(name, environment)
            raise BackendConflict(
                f"secret {name} in environment {environment} was written by somebody else at the same time",
                "look whose values are to stay, and create it again",
            )
        updated = _time(written["created_time"])
        created = before.created_at if before is not None else updated
        return SecretInfo(name, environment, tuple(sorted(values)), int(written["version"]), created, updated)

    async def create_anonymous(self, digest: str, environment: str, values: Mapping[str, str]) -> None:
        """Store values given in a program under the digest of their content. Idempotent. Raises BackendConflict when
        they change again and again."""
        path = f"{ROOT}/{check_environment(environment)}/{ANONYMOUS}/{check_digest(digest)}"
        _check_storable(values, "Secret.from_dict")
        for _ in range(TRIES):
            before = await self._stored(path)
            if before is not None and before.live and time.time() - before.updated_at <= FRESH:
                return
            # What is old is written anew, so that pruning leaves it alone.
            if await self._write(path, values, before.version if before else 0) is not None:
                return
            # Whoever was quicker wrote the same, or removed what was too old.
        raise BackendConflict(
            f"values of Secret.from_dict in environment {environment} were changed by others {TRIES} times in a row",
            "deploy again",
        )

    async def list(self, environment: str) -> tuple[SecretInfo, ...]:
        """Named secrets, sorted by name; anonymous ones are not shown, nor what others keep there under names that no
        secret can have."""
        folder = f"{ROOT}/{check_environment(environment)}"
        found = []
        for name in await self._names(folder):
            if not SECRET_NAME.fullmatch(name):
                continue
            stored = await self._stored(f"{folder}/{name}")
            keys = await self._keys(f"{folder}/{name}")
            if stored is not None and keys is not None:
                times = (stored.created_at, stored.updated_at)
                found.append(SecretInfo(name, environment, tuple(sorted(keys)), stored.version, *times))
        return tuple(found)

    async def delete(self, name: str, environment: str) -> None:
        """All its versions, for good. Raises NotFound."""
        check_name(name)
        path = f"{ROOT}/{check_environment(environment)}/{name}"
        stored = await self._stored(path)
        if stored is None:
            raise not_there(name, environment)
        await self._ask("DELETE", "metadata", path)
        if not stored.live:
            raise not_there(name, environment)

    async def versions(self, refs: Sequence[SecretRef], environment: str) -> Mapping[str, int]:
        """Name → current version; names that do not exist are left out."""
        found = {}
        for ref in dict.fromkeys(refs):
            path = _path(ref, ref.environment or environment)
            if ref.name is None or path is None:
                continue
            stored = await self._stored(path)
            if stored is not None and stored.live:
                found[ref.name] = stored.version
        return found

    # --- anonymous ones, for pruning -------------------------------------------------------------------------

    async def anonymous(self, environment: str) -> dict[str, float]:
        """Digest → when it was stored (Unix)."""
        folder = f"{ROOT}/{check_environment(environment)}/{ANONYMOUS}"
        found = {}
        for digest in await self._names(folder):
            stored = await self._stored(f"{folder}/{digest}")
            if stored is not None:
                found[digest] = stored.updated_at
        return found

    async def remove_anonymous(self, digest: str, environment: str, *, unless_put_since: float = math.inf) -> bool:
        """False: gone already, or put again at that time (Unix) or later."""
        path = f"{ROOT}/{check_environment(environment)}/{ANONYMOUS}/{check_digest(digest)}"
        stored = await self._stored(path)
        if stored is None or stored.updated_at >= unless_put_since:
            return False
        await self._ask("DELETE", "metadata", path)
        return True

    # --- the server ------------------------------------------------------------------------------------------

    async def _names(self, folder: str) -> tuple[str, ...]:
        answer = await self._ask("LIST", "metadata", folder)
        if answer is None:
            return ()
        return tuple(sorted(name for name in _data(answer)["keys"] if not name.endswith("/")))

    async def _stored(self, path: str) -> Stored | None:
        """None: no such path."""
        answer = await self._ask("GET", "metadata", path)
        if answer is None:
            return None
        data = _data(answer)
        version = int(data["current_version"])
        latest = (data.get("versions") or {}).get(str(version))
        live = latest is not None and not latest.get("destroyed") and not _over(latest.get("deletion_time", ""))
        created = _time(data["created_time"])
        return Stored(version, live, created, _time(latest["created_time"]) if latest else created)

    async def _keys(self, path: str) -> frozenset[str] | None:
        """Names of the latest version's keys; None: there is no such secret any more, or yet."""
        answer = await self._ask("GET", "subkeys", path)
        if answer is None:
            return None
        subkeys = _data(answer).get("subkeys")
        return None if subkeys is None else frozenset(subkeys)

    async def _write(self, path: str, values: Mapping[str, str], version: int) -> dict[str, Any] | None:
        """The new version's metadata; None: `version` is not the latest any more."""
        content = {"data": dict(values), "options": {"cas": version}}
        for left in reversed(range(TRIES)):
            try:
                answer = await self._client.request(
                    "POST", f"{self._mount}/data/{path}", content, ok=(200,), hidden=values.values()
                )
                return _data(answer)
            except BackendUnreachable as error:
                raise BackendUnreachable(
                    f"{error.message}; the values may have been stored all the same", error.hint
                ) from error
            except ServerRefused as error:
                if error.status == 400 and "check-and-set" in error.text:
                    return None
                if error.status != 400 or "Upgrading" not in error.text or not left:
                    raise
                await asyncio.sleep(SHORT_WAIT)
        raise AssertionError("the last try returns or raises")

    async def _ask(self, method: str, kind: str, path: str) -> Answer | None:
        """None: nothing is stored there. The first time it looks whether the store is one of version 2: one of version
        1 would take what is written for something else. Raises BackendRefused."""
        if not self._looked:
            # Open to whoever has any right in the store. 403: the question itself will tell.
            answer = await self._client.request("GET", f"sys/internal/ui/mounts/{self._mount}", ok=(200, 403))
            if answer.status == 200 and not _is_store(_data(answer)):
                raise self._no_store()
            self._looked = True
        answer = await self._client.request(method, f"{self._mount}/{kind}/{path}", ok=(200, 204, 404))
        if answer.status != 404:
            return answer
        if "no handler for route" in answer.text or "unsupported path" in answer.text:
            raise self._no_store()
        return None

    def _no_store(self) -> BackendRefused:
        namespace = self._client.settings.namespace
        within = f" in namespace {namespace}" if namespace else ""
        return BackendRefused(
            f"Vault at {self._client.address} has no key-value store of version 2 at {self._mount}{within}",
            "`modalnomad setup --only vault` makes it; its name comes from vault.mount",
        )


def _is_store(mount: Mapping[str, Any]) -> bool:
    return mount.get("type") == "kv" and (mount.get("options") or {}).get("version") == "2"


def _path(ref: SecretRef, environment: str) -> str | None:
    """Below the mount's `data/` and its like; None: a name that cannot exist. Raises UserError."""
    folder = f"{ROOT}/{check_environment(environment)}"
    if ref.anonymous is not None:
        return f"{folder}/{ANONYMOUS}/{check_digest(ref.anonymous)}"
    return f"{folder}/{ref.name}" if SECRET_NAME.fullmatch(ref.name or "") else None


def _check_storable(values: Mapping[str, str], what: str) -> None:
    """The rules of all back ends, and this one's. Raises UserError, with no value in it."""
    check_values(values, what)
    problems = []
    for key, value in values.items():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            problems.append(f"the value of {key} is not UTF-8, and would not come back as it is")
    if len(values) > KEYS_LIMIT:
        problems.append(f"it has {len(values):,} keys, more than {KEYS_LIMIT}")
    if not problems and (size := _size(values)) > SIZE_LIMIT:
        problems.append(f"all its values take {size:,} bytes, more than {SIZE_LIMIT:,}")
    if problems:
        raise UserError(f"{what} cannot be stored:\n" + "\n".join(f"  {problem}" for problem in problems))


def _size(values: Mapping[str, str]) -> int:
    """Bytes of the file in a task: Go's JSON, which writes these three as six letters each."""
    text = json.dumps(dict(values), ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) + 5 * sum(text.count(letter) for letter in "<>&")


def _data(answer: Answer) -> dict[str, Any]:
    """Raises BackendRefused for what is no answer of this API."""
    try:
        data = answer.json()["data"]
    except (ValueError, KeyError, TypeError):
        data = None
    if not isinstance(data, dict):
        raise BackendRefused(
            "what answers at the address of Vault is no Vault: its answer is not in the API's form",
            "correct VAULT_ADDR (vault.address)",
        )
    return data


def _time(text: str) -> float:
    """RFC 3339 → Unix time."""
    return datetime.fromisoformat(text).timestamp()


def _over(deletion_time: str) -> bool:
    """A version may be deleted at a time to come (`delete_version_after`)."""
    return bool(deletion_time) and _time(deletion_time) <= time.time()
