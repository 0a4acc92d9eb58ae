"""Secrets: names and keys are visible, values only travel to replicas, never through the router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modalnomad.model.manifest import SecretRef


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """What may be shown of a secret."""

    name: str
    environment: str
    keys: tuple[str, ...]
    version: int
    created_at: float
    updated_at: float


class Secrets(Protocol):
    """Values are exact to the byte. No value ever stands in an error, a log line or a return value of this port."""

    async def check(self, refs: Sequence[SecretRef], environment: str) -> None:
        """Raises SecretMissing naming every absent secret and every absent required key, all at once."""

    async def create(
        self, name: str, environment: str, values: Mapping[str, str], *, replace: bool = False
    ) -> SecretInfo:
        """Raises UserError for a bad name or key, BackendConflict when it exists and `replace` is False."""

    async def create_anonymous(self, digest: str, environment: str, values: Mapping[str, str]) -> None:
        """Store values given in a program under the digest of their content. Idempotent."""

    async def list(self, environment: str) -> tuple[SecretInfo, ...]:
        """Named secrets, sorted by name; anonymous ones are not shown."""

    async def delete(self, name: str, environment: str) -> None:
        """Raises NotFound."""

    async def versions(self, refs: Sequence[SecretRef], environment: str) -> Mapping[str, int]:
        """Name → current version."""
