"""The orderly end of `serve`, within one deadline.

no new requests ─▶ those under way are answered ┐   (at the same time)
                   idle Functions' replicas end ┴▶ the other replicas end ─▶ what is left is cut off
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from modalnomad.deploy.warming import ALIVE, Pools
from modalnomad.kit.tasks import Tasks
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Replica, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.router.load import Load
from modalnomad.settings import Settings

LOOK = 0.05
"""Seconds between two looks at who is idle; a request that was just let in has its place by the first of them."""
SLACK = 1.0
"""Seconds past the deadline: a replica ends its grace period itself, and says what it cut."""
TELL_AFTER = 1.0
"""Seconds of waiting for replicas that are not worth a word."""


class Router(Protocol):
    """What ending asks of it (`router.server.RouterServer`)."""

    async def drain(self) -> bool:
        """No new requests; wait for those under way. False: not all ended in time."""

    def load(self, revision: RevisionId) -> Load:
        """How busy it is."""

    def busy(self) -> Collection[ReplicaKey]:
        """Replicas on which requests run."""


class Ending:
    """`revisions`: all that may have replicas."""

    def __init__(
        self, router: Router, pools: Pools, revisions: Mapping[RevisionId, Revision], settings: Settings
    ) -> None:
        self._router = router
        self._pools = pools
        self._revisions = revisions
        self._drain_delay = settings.router.drain_delay
        self._drain_timeout = settings.router.drain_timeout
        router_settings = settings.router
        self.limit = router_settings.drain_delay + max(router_settings.drain_timeout, settings.embedded.grace_period)
        """Seconds all of it may take."""

    def under_way(self) -> dict[str, int]:
        """Function as `app/tag` → its requests that run or wait; only where there are any."""
        found: dict[str, int] = {}
        for revision in self._revisions.values():
            load = self._router.load(revision.id)
            if requests := load.running + load.waiting:
                name = f"{revision.app}/{revision.function.tag}"
                found[name] = found.get(name, 0) + requests
        return found

    async def run(self, tell: Callable[[str], None]) -> None:
        """To the end; `tell` gets what is waited for, and what was in vain."""
        deadline = asyncio.get_running_loop().time() + self.limit + SLACK
        async with Tasks("ending") as tasks:
            tasks.spawn(self._retire_idle(), "idle")
            finished = await self._router.drain()
        if not finished and (left := self.under_way()):
            tell(f"Cut off, not done after {self._drain_timeout:g} s: {requests_in_words(left)}")
        for revision in list(self._revisions):
            await self._pools.retire(revision)
        await self._replicas_end(deadline, tell)

    async def _retire_idle(self) -> None:
        """Replicas that nobody needs any more end while others still answer. A request that comes to need one after all
        brings its revision back."""
        await asyncio.sleep(self._drain_delay)  # until then requests come as ever
        while True:
            await asyncio.sleep(LOOK)
            for revision in list(self._revisions):
                load = self._router.load(revision)
                if not load.running and not load.waiting:
                    await self._pools.retire(revision)

    async def _replicas_end(self, deadline: float, tell: Callable[[str], None]) -> None:
        """All but those whose requests had their time and do not end."""
        time = asyncio.get_running_loop().time
        for until in (min(deadline, time() + TELL_AFTER), deadline):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._pools.replicas.until(lambda replicas: not self._ending(replicas))
                    return
            if until < deadline:
                names = sorted({self._revisions[key.pool.revision].function.tag for key in self._ending_now()})
                tell(f"Waiting {deadline - time():.0f} s at most for replicas of {', '.join(names)} to end")

    def _ending_now(self) -> list[ReplicaKey]:
        return self._ending(self._pools.replicas.value)

    def _ending(self, replicas: Collection[Replica]) -> list[ReplicaKey]:
        busy = self._router.busy()
        return [
            replica.key
            for replica in replicas
            if replica.state in ALIVE and replica.key.pool.revision in self._revisions and replica.key not in busy
        ]


def requests_in_words(requests: Mapping[str, int]) -> str:
    """`1 request of shop/f, 2 of shop/g`."""
    counted = [f"{count} of {name}" for name, count in requests.items()]
    first, *others = counted
    count = next(iter(requests.values()))
    return ", ".join([first.replace(" of ", " request of " if count == 1 else " requests of ", 1), *others])
