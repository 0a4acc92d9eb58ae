"""Replicas coming and going, told once per state."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Final, Protocol

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision

OVER: Final = frozenset({ReplicaState.FAILED, ReplicaState.GONE})


class ReplicaView(Protocol):
    """Where they are told."""

    def replica(self, revision: Revision, replica: Replica) -> None:
        """A replica's state changed."""


class ReplicasTold:
    """`find` names the revisions whose replicas are told. `since`: Unix time; of those that were started earlier and
    have ended by now nothing is told."""

    def __init__(self, view: ReplicaView, find: Callable[[RevisionId], Revision | None], *, since: float = 0.0) -> None:
        self._view = view
        self._find = find
        self._since = since
        self._states: dict[ReplicaKey, ReplicaState] = {}

    async def follow(self, snapshots: AsyncIterable[tuple[Replica, ...]]) -> None:
        """Until they end."""
        async for replicas in snapshots:
            self.tell(replicas)

    def tell(self, replicas: tuple[Replica, ...]) -> None:
        """One snapshot of all."""
        present = {replica.key for replica in replicas}
        for key in [key for key in self._states if key not in present]:
            del self._states[key]
        for replica in replicas:
            revision = self._find(replica.key.pool.revision)
            if revision is not None and self._states.get(replica.key) != replica.state:
                over = replica.key not in self._states and replica.state in OVER and replica.started_at < self._since
                self._states[replica.key] = replica.state
                if not over:
                    self._view.replica(revision, replica)
