"""The engine: starts, watches and ends replicas. It never decides how many there are or when one goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from modalnomad.model.manifest import Function, Notice
from modalnomad.model.replica import LogLine, Replica, ReplicaKey
from modalnomad.model.revision import Revision


@dataclass(frozen=True, slots=True)
class Verdict:
    """Could anything run this revision? `never`: no node ever could; `not_now`: all that could are full."""

    answer: Literal["yes", "not_now", "never"]
    reason: str = ""


class Starter(Protocol):
    """All the router gets of an engine."""

    async def start(self, key: ReplicaKey, reason: str, *, request_id: str = "") -> None:
        """Start this replica. The same key twice starts once, whoever asks. `request_id`: of the request it is started
        for, for whoever reads why it runs; empty: for none. Returns when the start is under way; how it
        goes is told by `watch`. A start that cannot even begin is reported there too (FAILED with its Failure), not
        raised; an unprepared revision raises NotFound."""

    def watch(self) -> AsyncIterator[tuple[Replica, ...]]:
        """Whole snapshots of all replicas, the first as soon as they are known, then one per change (changes may be
        merged). An ended replica (FAILED, GONE) stays in the snapshots for a minute at least: its reason and its epoch
        must be seen. One that FAILED because it waits (for room, for secrets) may be STARTING later."""

    async def kill(self, key: ReplicaKey) -> None:
        """End it at once with everything it started. Unknown or ended: nothing happens. Returns when it is gone."""


class Engine(Starter, Protocol):
    """The whole port, as the control plane sees it."""

    async def prepare(self, revision: Revision) -> None:
        """Make the revision startable. Idempotent. Raises BackendError, NotFound: a bundle or image is missing, where
        that is known here; else the start fails and names it."""

    async def retire(self, revision: str) -> None:
        """Forget a revision: its running replicas are killed, what was prepared for it is freed. Unknown: nothing."""

    def logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        """Lines of one replica, or of all (None), oldest first; with `follow` it goes on until the caller closes it or
        that one replica ends."""

    async def explain(self, revision: Revision) -> Verdict:
        """Could anything run it, and if not, why. Starts nothing."""

    async def remarks(self, functions: Sequence[Function]) -> tuple[Notice, ...]:
        """What an App's Functions ask for that this back end does not act on, or does in one of several ways. The same
        functions give the same remarks. Starts nothing. Raises BackendError."""
