"""Discovery: the record of what is served, shared by all routers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from modalnomad.model.revision import Revision
from modalnomad.model.routes import Route, RouteSnapshot, Token


@dataclass(frozen=True, slots=True)
class AppRecord:
    """Everything served of one App: its routes and the revisions they need. Published as a whole."""

    app: str
    environment: str
    version: int
    """1, 2, … rises by one with every publication."""
    routes: tuple[Route, ...]
    revisions: tuple[Revision, ...]


@dataclass(frozen=True, slots=True)
class PublishApp:
    """Replace the App's record; `expected` is the version it must have now (0: none yet)."""

    record: AppRecord
    expected: int


@dataclass(frozen=True, slots=True)
class WithdrawApp:
    """Remove the App's record."""

    app: str
    environment: str


@dataclass(frozen=True, slots=True)
class PutToken:
    """Create or replace a token by its id."""

    token: Token


@dataclass(frozen=True, slots=True)
class DeleteToken:
    """Remove a token; unknown ids raise NotFound."""

    id: str
    environment: str


Change = PublishApp | WithdrawApp | PutToken | DeleteToken


class Discovery(Protocol):
    """Whole snapshots, never deltas. An answer that fails never empties the table."""

    def watch(self) -> AsyncIterator[RouteSnapshot]:
        """The current snapshot at once, then one per change."""

    async def app(self, name: str, environment: str) -> AppRecord | None:
        """The App's record as it is now."""

    async def tokens(self, environment: str) -> tuple[Token, ...]:
        """All tokens of an environment."""

    async def publish(self, change: Change) -> None:
        """One atomic write. Raises BackendConflict when `expected` is not the version found."""

    def lock(self, name: str, *, lifetime: float) -> AbstractAsyncContextManager[None]:
        """Hold the named lock; a holder that dies loses it within `lifetime` seconds. Raises BackendConflict when
        somebody else holds it, naming the holder."""
