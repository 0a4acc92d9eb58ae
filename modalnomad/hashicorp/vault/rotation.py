"""Which replicas were started with other values of their secrets than there are now, or with a ticket of another
platform key: they are to be replaced."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from modalnomad.model.errors import ModalNomadError
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import ReplicaKey

logger = logging.getLogger("modalnomad.secrets")

STARTED_WITH = re.compile(r"([a-z0-9][a-z0-9_-]{0,62})=([0-9]{1,15})")

Running = Callable[[], Mapping[ReplicaKey, str]]
"""Replicas that run, each with the versions it was started with, as `versions_text` wrote them."""
Current = Callable[[RevisionId], Awaitable[Mapping[str, int]]]
"""Versions that a replica of this revision would be started with now. Raises BackendError."""
Tell = Callable[[Mapping[ReplicaKey, str]], None]
"""Replicas to be replaced, and why; all of them, each time it is looked."""


def versions_text(versions: Mapping[str, int]) -> str:
    """`api=1,db=3`."""
    return ",".join(f"{name}={version}" for name, version in sorted(versions.items()))


def versions_of(text: str) -> dict[str, int]:
    """What `versions_text` was made of; parts that cannot be read are left out."""
    found = (STARTED_WITH.fullmatch(part) for part in text.split(","))
    return {match[1]: int(match[2]) for match in found if match is not None}


def stale(started: str, current: Mapping[str, int]) -> str:
    """Why a replica started with these versions should be replaced; empty: it should not. A secret that is gone is no
    reason: nothing could be started in its place. Neither is one that the replica was started without."""
    reasons = [
        f"secret {name} has version {current[name]}, it was started with {version}"
        for name, version in sorted(versions_of(started).items())
        if current.get(name, version) != version
    ]
    return "; ".join(reasons)


def behind(started: str, current: Mapping[str, int]) -> bool:
    """Is every difference one to a lower number? Then the secret was deleted and created anew, or a server told what
    was true a moment ago."""
    before = versions_of(started)
    return all(current.get(name, version) <= version for name, version in before.items())


class Rotation:
    """Looks every `every` seconds, as long as `run` runs."""

    def __init__(
        self,
        *,
        running: Running,
        current: Current,
        tell: Tell,
        every: float,
        others: Callable[[], Mapping[ReplicaKey, str]] = dict,
    ) -> None:
        """`others`: which are to be replaced for another reason."""
        self._others = others
        self._running = running
        self._current = current
        self._tell = tell
        self._every = every
        self._doubted: dict[ReplicaKey, str] = {}
        self._told: dict[ReplicaKey, str] = {}
        self._failing: set[RevisionId] = set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(self._every)
            await self.look()

    async def look(self) -> None:
        """Once. Where Vault gives no answer, what was told before stands."""
        by_revision: dict[RevisionId, dict[ReplicaKey, str]] = {}
        for key, started in self._running().items():
            if started:
                by_revision.setdefault(key.pool.revision, {})[key] = started
        self._failing &= by_revision.keys()
        found: dict[ReplicaKey, str] = {}
        doubted: dict[ReplicaKey, str] = {}
        for revision, replicas in by_revision.items():
            current = await self._ask(revision)
            for key, started in replicas.items():
                if current is None:
                    reason = self._told.get(key, "")
                else:
                    reason = stale(started, current)
                    if reason and behind(started, current):
                        doubted[key] = reason
                        if self._doubted.get(key) != reason:
                            continue  # believed when it is seen again
                if reason:
                    found[key] = reason
        self._told, self._doubted = found, doubted
        self._tell({**self._others(), **found})

    async def _ask(self, revision: RevisionId) -> Mapping[str, int] | None:
        """None: no answer; told once in a row."""
        try:
            current = await self._current(revision)
        except ModalNomadError as error:  # a record may name what no secret can be
            if revision not in self._failing:
                logger.warning("whether secrets of running replicas have newer versions: %s", error.message)
            self._failing.add(revision)
            return None
        self._failing.discard(revision)
        return current
