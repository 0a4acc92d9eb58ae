"""Owns the pools and the futures behind their tickets: lease = a free place at once, or one wake and a bounded wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.errors import BackendError
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Address, Failure, PoolKey, Replica, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.ports.engine import Starter
from modalnomad.router.probe import Asker
from modalnomad.router.table import Match
from modalnomad.settings import RouterSettings, ScalingSettings


class StartFailed(BackendError):
    """A replica asked for by `warm` did not become ready."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Lease(Protocol):
    """One request's place in one replica."""

    key: ReplicaKey
    address: Address
    ticket: bytes
    match: Match

    def refused(self) -> None:
        """The runner said Busy: not offered for a moment."""

    def gone(self, *, timed_out: bool = False) -> None:
        """Connection refused or reset before any byte of an answer: a strike. `timed_out`: the connect timed out."""


@dataclass(frozen=True, slots=True)
class Load:
    """Counts of one revision's pools."""

    pools: int = 0
    waiting: int = 0
    running: int = 0
    starting: int = 0
    ready: int = 0
    leaving: int = 0
    wakes: int = 0
    starts: int = 0


class Activator:
    """See the module."""

    def __init__(
        self,
        *,
        engine: Starter,
        ask: Asker,
        forget: Callable[[Address], None],
        resolve: Callable[[str], Match],
        settings: RouterSettings,
        scaling: ScalingSettings,
        platform_key: bytes,
        clock: Clock = monotonic,
    ) -> None:
        raise NotImplementedError

    def lease(
        self, match: Match, key: PoolKey, avoid: frozenset[ReplicaKey] = frozenset()
    ) -> AbstractAsyncContextManager[Lease]:
        """A place for one request; `avoid`: replicas that just refused it, taken only when there is no other. Raises
        Reply."""
        raise NotImplementedError

    async def warm(self, revision: Revision, key: PoolKey, count: int) -> None:
        """Start replicas until `count` are ready. Raises StartFailed."""
        raise NotImplementedError

    async def retire(self, revision: RevisionId) -> None:
        """Drain every replica of the revision; they finish what they hold."""
        raise NotImplementedError

    def observe(self, replicas: Iterable[Replica]) -> None:
        """Take in one whole snapshot of the engine."""
        raise NotImplementedError

    def load(self, revision: RevisionId) -> Load:
        """Counts for tests, `serve` and admin."""
        raise NotImplementedError

    async def close(self) -> None:
        """Answer everybody waiting 503 `draining`, end all background work. Replicas are left as they are."""
        raise NotImplementedError
