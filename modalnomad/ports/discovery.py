"""Discovery: the record of what is served, shared by all routers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import Problem
from modalnomad.model.routes import RouteSnapshot, Token

__all__ = ["AppRecord", "Change", "DeleteToken", "Discovery", "PublishApp", "PutToken", "WithdrawApp"]


@dataclass(frozen=True, slots=True)
class PublishApp:
    """Replace the App's record; `expected` is the serial it must have now (0: there is none yet). The record's own
    serial is `expected` + 1."""

    record: AppRecord
    expected: int


@dataclass(frozen=True, slots=True)
class WithdrawApp:
    """Remove the App's record with all its versions. Unknown: NotFound."""

    app: str
    environment: str
    expected: int | None = None
    """The serial it must have now, else BackendConflict; None: whatever it is, also a record that cannot be read."""


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
        """The App's record as it is now. Raises BackendRefused when it cannot be read."""

    async def apps(self, environment: str | None = None) -> tuple[AppRecord, ...]:
        """Every App's record, stopped ones too, of one environment or of all, by environment and name."""

    async def problems(self) -> tuple[Problem, ...]:
        """The records that cannot be read now, each with its place and what to do; `apps` and `tokens` lack them."""

    async def tokens(self, environment: str) -> tuple[Token, ...]:
        """All tokens of an environment."""

    async def publish(self, change: Change) -> None:
        """One atomic write. Raises BackendConflict when `expected` is not the serial found, or when a host of a route
        that would be served belongs to another App that is served: the message names both."""

    def lock(self, name: str, *, lifetime: float) -> AbstractAsyncContextManager[None]:
        """Hold the named lock; a holder that dies loses it within `lifetime` seconds. Raises BackendConflict when
        somebody else holds it, naming the holder."""
