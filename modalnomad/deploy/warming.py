"""Warming: a new version has as many replicas ready as the old one has, before anybody is sent to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import ModalNomadError
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica, ReplicaState
from modalnomad.model.revision import Revision

ALIVE = frozenset({ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING})
WARM = frozenset({ReplicaState.STARTING, ReplicaState.READY})


class Pools(Protocol):
    """What a reload asks of the router."""

    @property
    def replicas(self) -> Cell[tuple[Replica, ...]]:
        """All replicas, with the router's knowledge of who is ready."""

    async def warm(self, revision: Revision, key: PoolKey, count: int) -> None:
        """Return when that many are ready. Raises BackendError."""

    async def retire(self, revision: RevisionId) -> None:
        """Drain all replicas of the revision."""

    async def routed(self, revisions: frozenset[RevisionId]) -> None:
        """Return when requests are led to these revisions."""


class Succession(Protocol):
    """Keeps two revisions of one function apart that cannot live at the same time."""

    def apart(self, revision: Revision) -> bool:
        """True: the revision before it must be gone before this one starts."""

    def after(self, revision: RevisionId, earlier: RevisionId) -> None:
        """Hold back starts of `revision` until no replica of `earlier` is alive."""


async def warm_like(
    revisions: Iterable[Revision], old: Mapping[str, Revision], *, pools: Pools, succession: Succession
) -> None:
    """Each pool that is warm in the old revision of a function (`old`: by tag) becomes as warm in its new one.

    Pools of class parameters that are declared otherwise now are left cold, and so are functions whose two revisions
    cannot live at once. Raises the first failure; the other starts are left to the router then.
    """
    work = []
    for before, revision in replacements(revisions, old):
        if not succession.apart(revision):
            warm = as_warm(before, revision, count_warm(pools.replicas.value, before.id))
            work += [
                pools.warm(revision, PoolKey(revision.id, parameters), count) for parameters, count in warm.items()
            ]
    await all_or_first_error(work)


def replacements(revisions: Iterable[Revision], old: Mapping[str, Revision]) -> Iterator[tuple[Revision, Revision]]:
    """Functions (`old`: by tag) that get another revision: the one before, and the new one."""
    for revision in revisions:
        before = old.get(revision.function.tag)
        if before is not None and before.id != revision.id:
            yield before, revision


def as_warm(before: Revision, after: Revision, warm: Mapping[str, int]) -> Mapping[str, int]:
    """Class parameters → replicas `after` needs to be as warm as `before` is. None of parameters that are declared
    otherwise now: no request could name those pools."""
    return warm if before.function.parameters == after.function.parameters else {}


def count_warm(replicas: Iterable[Replica], revision: RevisionId) -> Mapping[str, int]:
    """Class parameters → number of replicas that are up or coming."""
    return Counter(
        replica.key.pool.parameters
        for replica in replicas
        if replica.key.pool.revision == revision and replica.state in WARM
    )


def is_alive(replicas: Iterable[Replica], revision: RevisionId) -> bool:
    """Whether any replica of the revision still runs."""
    return any(replica.key.pool.revision == revision and replica.state in ALIVE for replica in replicas)


async def all_or_first_error(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all; the first ModalNomadError cancels the others and is raised."""

    async def attempt(one: Awaitable[None]) -> ModalNomadError | None:
        try:
            await one
        except ModalNomadError as error:
            return error
        return None

    async with Tasks("warming") as tasks:
        for done in asyncio.as_completed([tasks.spawn(attempt(one), "one") for one in work]):
            if (error := await done) is not None:
                raise error


def compiles(path: str) -> bool:
    """False for a Python file that is gone or has a syntax error: no need to start anything to know how that ends."""
    if not path.endswith(".py"):
        return True
    try:
        compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return False
    return True
