"""Session: one program under `serve`, from its first publication to its withdrawal, reloaded whenever a file changes.

    save ─▶ guess: bundle with the old declarations ─▶ start replicas of that ┐   (at the same time)
         └▶ describe ─▶ build ───────────────────────────────────────────────┴▶ same revision? adopted, else ended
                                                                               └▶ ready ─▶ flip ─▶ old ones drain

What fails on the way leaves the published version as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from modalnomad.deploy.build import Builder, Candidate
from modalnomad.deploy.collect import Collector, Reference
from modalnomad.deploy.plan import Plan
from modalnomad.deploy.report import Report
from modalnomad.deploy.warming import Pools, Succession, compiles, is_alive, warm_like
from modalnomad.deploy.watching import Watcher
from modalnomad.kit.tasks import Tasks
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendError, ModalNomadError
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Notice
from modalnomad.ports.discovery import Discovery, PublishApp, WithdrawApp
from modalnomad.ports.engine import Engine

logger = logging.getLogger("modalnomad.serve")

PATIENCE = 5
"""Reloads in a row that may be given up for a newer change; the next one runs to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The parts a session works with."""

    builder: Builder
    engine: Engine
    discovery: Discovery
    pools: Pools
    succession: Succession
    report: Report


class Session:
    """Owns its watcher, its reloads, and the revisions it had prepared."""

    def __init__(
        self,
        reference: Reference,
        platform: Platform,
        *,
        name: str | None = None,
        check: Callable[[Plan], None] = lambda plan: None,
        on_published: Callable[[], Awaitable[None]],
    ) -> None:
        """`name` overrides the App's; `check` raises UserError when the plan does not go with the other programs
        served beside it; `on_published` runs after every publication."""
        self.reference = reference
        self._platform = platform
        self._name = name
        self._check = check
        self._on_published = on_published
        self._tasks = Tasks("session")
        self._collector = Collector(reference)
        self._watcher: Watcher | None = None
        self._current: Candidate | None = None
        self._serial = 0
        self._told: set[tuple[str, str, str]] = set()
        self._prepared: set[RevisionId] = set()
        self._draining: set[RevisionId] = set()
        self._reloading = False
        self._publishing = False

    @property
    def current(self) -> Candidate:
        """What is published, or about to be for the first time."""
        assert self._current is not None, "not built yet"
        return self._current

    @property
    def watched(self) -> tuple[str, ...]:
        """Local files and folders whose change makes a reload."""
        return self.current.description.watched

    async def build(self) -> None:
        """Collect and build for the first time; nothing is published. Raises ModalNomadError."""
        begun = time.time()
        description = await self._collector.collect(self._platform.report.output)
        # Watching starts before the build: what changed since the program was read makes a reload.
        self._watcher = Watcher(description.watched, since=begun)
        plan = await self._planned(self._platform.builder.plan(description, self._name))
        self._current = await self._platform.builder.build(
            description, plan, self._platform.report, self._prepared.update
        )

    async def publish(self) -> None:
        """Let the router serve what was built."""
        await self._publish(self.current)

    async def withdraw(self) -> None:
        """Take the App's routes away."""
        if self._serial:
            self._serial = 0
            await self._platform.discovery.publish(WithdrawApp(self.current.plan.app, self.current.plan.environment))

    async def run(self) -> None:
        """Reload on every change, until cancelled. A newer change replaces a reload that is still under way."""
        assert self._watcher is not None, "not built yet"
        given_up = 0
        change = self._tasks.spawn(self._watcher.changed(), "change")
        while True:
            await self._collector.warm_up(await asyncio.to_thread(worth_importing, self.watched))
            paths = await change
            logger.debug("changed: %s", ", ".join(sorted(paths)))
            change = self._tasks.spawn(self._watcher.changed(), "change")
            reload = self._tasks.spawn(self._reload(paths), "reload")
            if given_up < PATIENCE:
                await asyncio.wait({reload, change}, return_when=asyncio.FIRST_COMPLETED)
                if not reload.done() and not self._publishing:
                    reload.cancel()
            await asyncio.wait({reload})
            given_up = given_up + 1 if reload.cancelled() else 0
            if not reload.cancelled():
                reload.result()

    async def close(self) -> None:
        """End all work; what is published stays until `withdraw`."""
        await self._tasks.close()
        await self._collector.close()
        if self._watcher is not None:
            await self._watcher.close()

    async def _reload(self, paths: Collection[str]) -> None:
        begun = time.monotonic()
        assert self._watcher is not None
        last = self.current
        self._reloading = True
        try:
            changed = await self._replace(last, paths)
        except (ModalNomadError, OSError) as error:
            self._watcher.widen(True)
            failure = error if isinstance(error, ModalNomadError) else BackendError(str(error))
            self._platform.report.reload_failed(last.plan.app, failure)
        else:
            self._watcher.widen(False)
            if changed:
                old = last.by_tag
                tags = tuple(tag for tag, new in self.current.by_tag.items() if tag not in old or old[tag].id != new.id)
                self._platform.report.reloaded(self.current.plan.app, tags, time.monotonic() - begun)
        finally:
            self._reloading = False
            await self._sweep()

    async def _replace(self, last: Candidate, paths: Collection[str]) -> bool:
        """Collect, build, warm, publish. False: the change made no difference."""
        platform = self._platform
        guess = self._tasks.spawn(self._guess(last, paths), "guess")
        try:
            begun = time.time()
            description = await self._collector.collect(platform.report.output)
            assert self._watcher is not None
            self._watcher.replace(description.watched, since=begun)
            plan = await self._planned(platform.builder.plan(description, self._name))
            candidate = await platform.builder.build(description, plan, platform.report, self._prepared.update)
            if candidate.serves_like(last):
                self._current = candidate
                return False
            await warm_like(candidate.revisions, last.by_tag, pools=platform.pools, succession=platform.succession)
        finally:
            guess.cancel()
        await self._publish(candidate)
        return True

    async def _guess(self, last: Candidate, paths: Collection[str]) -> None:
        """Start what the edit most likely makes, while the program is described. A failure is the real build's to
        tell; what was started in vain is swept away with the reload."""
        platform = self._platform
        try:
            if all(map(compiles, paths)):
                revisions = await platform.builder.guess(last, self._prepared.update)
                await warm_like(revisions, last.by_tag, pools=platform.pools, succession=platform.succession)
        except (ModalNomadError, OSError) as error:
            logger.debug("the guess failed: %s", error)

    async def _planned(self, plan: Plan) -> Plan:
        self._check(plan)
        notices = await self._platform.builder.notices(plan)
        for notice in notices:
            if _gist(notice) not in self._told:
                self._platform.report.notice(plan.app, notice)
        self._told.update(map(_gist, notices))
        return plan

    async def _publish(self, candidate: Candidate) -> None:
        """One atomic write, then the old revisions drain in the background. Not given up half-way."""
        self._publishing = True
        try:
            last, succession = self._current, self._platform.succession
            old = [revision for revision in (last.revisions if last else ()) if revision.id not in candidate.ids]
            for earlier in old:
                successor = candidate.by_tag.get(earlier.function.tag)
                if successor is not None and succession.apart(successor):
                    succession.after(successor.id, earlier.id)
            if last is not None and last.plan.app != candidate.plan.app:
                await self.withdraw()
            plan, serial = candidate.plan, self._serial + 1
            record = AppRecord(
                app=plan.app,
                environment=plan.environment,
                serial=serial,
                versions=(plan.version(candidate.revisions, serial),),
            )
            await self._platform.discovery.publish(PublishApp(record, self._serial))
            self._serial = serial
            self._current = candidate
            await self._platform.pools.routed(candidate.ids)
            for revision in old:
                self._draining.add(revision.id)
                self._tasks.spawn(self._drain(revision.id), "drain")
            await self._on_published()
        finally:
            self._publishing = False

    async def _drain(self, revision: RevisionId) -> None:
        """Let an unrouted revision finish, then forget it, unless an edit brought it back meanwhile."""
        pools = self._platform.pools
        await pools.retire(revision)
        await pools.replicas.until(lambda replicas: not is_alive(replicas, revision))
        self._draining.discard(revision)
        if not self._reloading:
            await self._sweep()

    async def _sweep(self) -> None:
        """Retire what was prepared and is neither served nor draining. Not while a reload prepares more: one that comes
        in between does the rest when it ends."""
        while not self._reloading and (unused := self._prepared - self.current.ids - self._draining):
            revision = unused.pop()
            self._prepared.discard(revision)
            await self._platform.pools.retire(revision)  # a start guessed in vain is no failure of the program
            await self._platform.engine.retire(revision)


def _gist(notice: Notice) -> tuple[str, str, str]:
    """What an edit further up in the file leaves as it was."""
    return notice.code, notice.message, notice.where.rpartition(":")[0]


def worth_importing(watched: Iterable[str]) -> list[str]:
    """Big modules that the program's own files name and that come with modalnomad: imported before they are needed."""
    for path in watched:
        with contextlib.suppress(OSError):
            if path.endswith(".py") and b"fastapi" in Path(path).read_bytes():
                return ["fastapi"]
    return []
