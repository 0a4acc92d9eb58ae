"""Secrets as files only their owner can read. Values leave this module for a replica's environment only."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final

from modalnomad.embedded.store import locked, read_record, remove_file, translated, write_record
from modalnomad.model.errors import BackendRefused
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

logger = logging.getLogger("modalnomad.secrets")

KIND: Final = "secret"
FORMAT: Final = 1


class EmbeddedSecrets(Secrets):
    """Port `Secrets` on `<home>/secrets`. Several processes may use one home."""

    def __init__(self, home: Path) -> None:
        self._named = home / "secrets" / "named"
        self._anonymous = home / "secrets" / "anonymous"
        self._lock = home / "secrets" / "lock"

    async def check(self, refs: Sequence[SecretRef], environment: str) -> None:
        """Raises SecretMissing naming every absent secret and every absent required key, all at once."""
        await asyncio.to_thread(self._read_all, refs, environment)

    async def resolve(self, refs: Sequence[SecretRef], environment: str) -> dict[str, str]:
        """Keys and values for a replica's environment; a later secret wins. Only the engine calls this.

        Raises SecretMissing as `check` does.
        """
        found = await asyncio.to_thread(self._read_all, refs, environment)
        return {key: value for values in found for key, value in values.items()}

    async def create(
        self, name: str, environment: str, values: Mapping[str, str], *, replace: bool = False
    ) -> SecretInfo:
        """Raises UserError for a bad name, key or value, BackendConflict when it exists and `replace` is False."""
        check_name(name)
        path = self._path(name, environment)
        check_values(values, f"secret {name}")
        return await asyncio.to_thread(self._create, path, name, environment, dict(values), replace)

    def _create(self, path: Path, name: str, environment: str, values: dict[str, str], replace: bool) -> SecretInfo:
        with self._locked():
            old = _read(path)
            if old is not None and not replace:
                raise exists_already(name, environment)
            now = time.time()
            content = {
                "name": name,
                "environment": environment,
                "values": values,
                "version": (old["version"] if old else 0) + 1,
                "created_at": old["created_at"] if old else now,
                "updated_at": now,
            }
            write_record(path, KIND, FORMAT, content)
        return _info(content)

    async def create_anonymous(self, digest: str, environment: str, values: Mapping[str, str]) -> None:
        """Store values given in a program under the digest of their content. Idempotent."""
        check_values(values, "Secret.from_dict")
        path = self._anonymous_path(digest, environment)
        content = {"values": dict(values), "version": 1, "created_at": time.time(), "updated_at": time.time()}

        def store() -> None:
            with self._locked():
                try:
                    # Noted as just used, so that it is not pruned before the deploy that needs it is through.
                    os.utime(path)
                except FileNotFoundError:
                    write_record(path, KIND, FORMAT, content)

        await asyncio.to_thread(store)

    def anonymous(self) -> dict[tuple[str, str], os.stat_result]:
        """(environment, digest) of all anonymous ones; `st_mtime`: when it was last stored. Not for the event loop.
        Raises BackendRefused."""
        found = {}
        with translated(f"read {self._anonymous}"):
            for path in self._anonymous.glob("*/*.json"):
                with suppress(FileNotFoundError):
                    found[path.parent.name, path.stem] = path.stat()
        return found

    def remove_anonymous(self, digest: str, environment: str, *, unless_used_since: float) -> int:
        """Bytes freed; 0: gone already, or stored again at that time (Unix) or later. Not for the event loop. Raises
        BackendRefused."""
        path = self._anonymous_path(digest, environment)
        with self._locked(), translated(f"remove {path}"):
            try:
                status = path.stat()
                if status.st_mtime >= unless_used_since:
                    return 0
                remove_file(path)
            except FileNotFoundError:
                return 0
        return status.st_size

    async def list(self, environment: str) -> tuple[SecretInfo, ...]:
        """Named secrets, sorted by name; anonymous ones are not shown. One that cannot be read is logged, and left
        out."""
        folder = self._named / check_environment(environment)
        return await asyncio.to_thread(self._list, folder)

    def _list(self, folder: Path) -> tuple[SecretInfo, ...]:
        with translated(f"read {folder}"):
            paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
        found = []
        for path in paths:
            try:
                content = _read(path)
            except BackendRefused as error:
                logger.error("%s; %s", error.message, error.hint)
            else:
                if content is not None:
                    found.append(_info(content))
        return tuple(found)

    async def delete(self, name: str, environment: str) -> None:
        """Raises NotFound."""
        check_name(name)
        path = self._path(name, environment)

        def remove() -> None:
            with self._locked(), translated(f"remove {path}"):
                try:
                    remove_file(path)
                except FileNotFoundError:
                    raise not_there(name, environment) from None

        await asyncio.to_thread(remove)

    async def versions(self, refs: Sequence[SecretRef], environment: str) -> Mapping[str, int]:
        """Name → current version; names that do not exist are left out."""

        def read() -> dict[str, int]:
            named = ((ref.name, self._read(ref, environment)) for ref in refs if ref.name is not None)
            return {name: content["version"] for name, content in named if content is not None}

        return await asyncio.to_thread(read)

    # --- files -----------------------------------------------------------------------------------------------

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._lock)

    def _path(self, name: str, environment: str) -> Path:
        return self._named / check_environment(environment) / f"{name}.json"

    def _anonymous_path(self, digest: str, environment: str) -> Path:
        return self._anonymous / check_environment(environment) / f"{check_digest(digest)}.json"

    def _read(self, ref: SecretRef, environment: str) -> dict[str, Any] | None:
        environment = ref.environment or environment
        if ref.anonymous is not None:
            return _read(self._anonymous_path(ref.anonymous, environment), anonymous=True)
        name = ref.name or ""
        # A name that could not have been created cannot exist; it must not reach the file system either.
        return _read(self._path(name, environment)) if SECRET_NAME.fullmatch(name) else None

    def _read_all(self, refs: Sequence[SecretRef], environment: str) -> tuple[dict[str, str], ...]:
        read = [(ref, ref.environment or environment, self._read(ref, environment)) for ref in refs]
        check_present((ref, where, frozenset(found["values"]) if found else None) for ref, where, found in read)
        return tuple(found["values"] for _, _, found in read if found)


def _read(path: Path, *, anonymous: bool = False) -> dict[str, Any] | None:
    """A secret's record, whole. Raises BackendRefused, with no part of it in the message."""
    content = read_record(path, KIND, FORMAT)
    if content is None:
        return None
    wanted = {"values": dict, "version": int} | ({} if anonymous else {"name": str, "environment": str})
    times = () if anonymous else ("created_at", "updated_at")
    if (
        any(not isinstance(content.get(field), kind) for field, kind in wanted.items())
        or any(not isinstance(content.get(field), int | float) for field in times)
        or any(not isinstance(value, str) for value in content["values"].values())
    ):
        raise BackendRefused(
            f"{path} is damaged: it does not hold what a secret holds",
            "restore the file from a copy, or delete the secret and create it again",
        )
    return content


def _info(content: Mapping[str, Any]) -> SecretInfo:
    return SecretInfo(
        name=content["name"],
        environment=content["environment"],
        keys=tuple(sorted(content["values"])),
        version=content["version"],
        created_at=content["created_at"],
        updated_at=content["updated_at"],
    )
