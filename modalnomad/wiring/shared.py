"""One watch on the records for all parts of a process that follow them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace

from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError, Problem
from modalnomad.model.routes import RouteSnapshot, Token
from modalnomad.ports.discovery import AppRecord, Change, Discovery

logger = logging.getLogger("modalnomad.discovery")

PAUSE = 1.0
"""Seconds before the records are watched again after that failed; what was last seen stays in force meanwhile."""


class SharedDiscovery(Discovery):
    """Port `Discovery` on another one, whose `watch` is called once, by `run`; watchers here get what it saw."""

    def __init__(
        self, records: Discovery, before: Callable[[RouteSnapshot], None], environment: str | None = None
    ) -> None:
        """`before` is called with each snapshot before anybody else sees it. `environment`: Apps of others are left out
        of snapshots; None: none are."""
        self.environment = environment
        self._records = records
        self._before = before
        self._latest: Cell[RouteSnapshot | None] = Cell(None)
        self.on_failure: Callable[[], None] = lambda: None
        """Called each time the records could not be watched any longer."""

    @property
    def latest(self) -> RouteSnapshot:
        """The last one seen; an empty one: none yet."""
        return self._latest.value or RouteSnapshot()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with aclosing(self._records.watch()) as snapshots:  # type: ignore[type-var]
                    async for snapshot in snapshots:
                        self._take(snapshot)
                logger.warning("the watch on the records ended; again in %g s", PAUSE)
            except (BackendError, OSError) as error:
                logger.warning("the records cannot be watched, again in %g s: %s", PAUSE, error)
            except Exception:
                # What is served stays served, whatever nobody foresaw in a record.
                logger.exception("the records cannot be watched, again in %g s", PAUSE)
            self.on_failure()
            await asyncio.sleep(PAUSE)

    def _take(self, snapshot: RouteSnapshot) -> None:
        # Numbered here: a watch that begins again begins to count again.
        numbered = replace(self._ours(snapshot), index=self.latest.index + 1)
        self._before(numbered)
        self._latest.set(numbered)

    def _ours(self, snapshot: RouteSnapshot) -> RouteSnapshot:
        if self.environment is None:
            return snapshot
        kept = {id: revision for id, revision in snapshot.revisions.items() if revision.environment == self.environment}
        return replace(
            snapshot, routes=tuple(route for route in snapshot.routes if route.revision in kept), revisions=kept
        )

    async def watch(self) -> AsyncIterator[RouteSnapshot]:
        """The current snapshot at once, or as soon as there is one, then one per change."""
        async with aclosing(self._latest.watch()) as snapshots:  # type: ignore[type-var]
            async for snapshot in snapshots:
                if snapshot is not None:
                    yield snapshot

    async def app(self, name: str, environment: str) -> AppRecord | None:
        """As the port says."""
        return await self._records.app(name, environment)

    async def apps(self, environment: str | None = None) -> tuple[AppRecord, ...]:
        """As the port says."""
        return await self._records.apps(environment)

    async def problems(self) -> tuple[Problem, ...]:
        """As the port says."""
        return await self._records.problems()

    async def tokens(self, environment: str) -> tuple[Token, ...]:
        """As the port says."""
        return await self._records.tokens(environment)

    async def publish(self, change: Change) -> None:
        """As the port says."""
        await self._records.publish(change)

    def lock(self, name: str, *, lifetime: float) -> AbstractAsyncContextManager[None]:
        """As the port says."""
        return self._records.lock(name, lifetime=lifetime)
