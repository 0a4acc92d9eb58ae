"""Succession: where two revisions of a function cannot live at once, the new one's start waits for the old one's end.

A fixed port without network namespaces, or the only GPU: the routes flip first, so requests wait in the new pool while
the old replicas finish theirs and go.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from modalnomad.deploy.warming import is_alive
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Function, Notice
from modalnomad.model.replica import LogLine, Replica, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.ports.engine import Engine, Verdict


class OrderedEngine(Engine):
    """An engine with that order added; everything else passes through."""

    def __init__(self, engine: Engine, apart: Callable[[Revision], bool]) -> None:
        """`apart`: whether this revision and the one before it cannot live at the same time."""
        self._engine = engine
        self._apart = apart
        self._earlier: dict[RevisionId, set[RevisionId]] = {}
        self._held: set[ReplicaKey] = set()
        """Starts that wait."""

    def apart(self, revision: Revision) -> bool:
        """See `warming.Succession`."""
        return self._apart(revision)

    def after(self, revision: RevisionId, earlier: RevisionId) -> None:
        """See `warming.Succession`. Going back to an earlier revision turns the order round. What `earlier` still waits
        for is waited for too."""
        inherited = self._earlier.pop(earlier, set())
        self._earlier.setdefault(revision, set()).update({earlier, *inherited} - {revision})

    async def start(self, key: ReplicaKey, reason: str, *, request_id: str = "") -> None:
        """As the port says, once those that have to go first are gone. Killed before that, it does not begin."""
        revision = key.pool.revision
        if revision in self._earlier:
            self._held.add(key)
            try:
                if not await self._its_turn(key):
                    return
            finally:
                self._held.discard(key)
            self._earlier.pop(revision, None)
        await self._engine.start(key, reason, request_id=request_id)

    async def _its_turn(self, key: ReplicaKey) -> bool:
        """Those that have to go first are gone. False: it was killed before."""
        snapshots, earlier = self._engine.watch(), set[RevisionId]()
        try:
            async for replicas in snapshots:
                if key not in self._held:
                    break
                # Where the order turned round, what it waited for still stands in its way until it is killed.
                earlier = self._earlier.get(key.pool.revision, earlier)
                if not any(is_alive(replicas, one) for one in earlier):
                    break
            return key in self._held
        finally:
            if isinstance(snapshots, AsyncGenerator):
                await snapshots.aclose()

    async def prepare(self, revision: Revision) -> None:
        """As the port says."""
        await self._engine.prepare(revision)

    async def retire(self, revision: str) -> None:
        """As the port says."""
        self._earlier.pop(RevisionId(revision), None)
        await self._engine.retire(revision)

    def watch(self) -> AsyncIterator[tuple[Replica, ...]]:
        """As the port says."""
        return self._engine.watch()

    async def kill(self, key: ReplicaKey) -> None:
        """As the port says."""
        self._held.discard(key)
        await self._engine.kill(key)

    def logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        """As the port says."""
        return self._engine.logs(key, follow=follow)

    async def explain(self, revision: Revision) -> Verdict:
        """As the port says."""
        return await self._engine.explain(revision)

    async def remarks(self, functions: Sequence[Function]) -> tuple[Notice, ...]:
        """As the port says."""
        return await self._engine.remarks(functions)
