"""Runs Functions with a schedule under `up`: looks at the timetable, calls what is due, and counts how it went."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Final, Protocol

from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError
from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.router.calls import Call, Outcome
from modalnomad.scaling.schedule import Job, JobKey, Memory, Timetable, fault

logger = logging.getLogger("modalnomad.schedules")

AT_ONCE: Final = 10
"""Runs of one Function under way; past that the next one is left out, which is logged."""
DOUBT: Final = 0.5
"""Seconds between two looks whether it may run what is due: usually it is cancelled before."""


def steady_clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Calls(Protocol):
    """`router.calls.Caller`."""

    async def call(self, call: Call, on_retry: Callable[[Outcome, float], None] | None = None) -> Outcome:
        """To its end."""


class Memories(Protocol):
    """Where it is kept when each job last ran."""

    async def load(self) -> dict[JobKey, Memory]:
        """What was remembered; what cannot be read counts as nothing."""

    async def save(self, memory: Mapping[JobKey, Memory]) -> None:
        """Instead of what was. Raises BackendError."""


class Scheduler:
    """A run still going when the next is due does not hold that up: `max_containers` does, if it is to."""

    def __init__(
        self,
        discovery: Discovery,
        caller: Calls,
        records: Memories,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_clock,
        may_run: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_run`: false while another one may be running what is due."""
        self._discovery = discovery
        self._caller = caller
        self._records = records
        self._wall = wall
        self._steady = steady
        self._may_run = may_run
        self._timetable = Timetable()
        self._revisions: Mapping[RevisionId, Revision] = {}
        self._jobs: dict[JobKey, Job] = {}
        self._changed = asyncio.Event()
        self._under_way: Counter[JobKey] = Counter()
        self._saved: dict[JobKey, Memory] = {}
        self._seen = False
        self._tasks = Tasks("schedules")
        self.outcomes: Counter[str] = Counter()
        """How runs ended (`result`, `raised`, `timeout`, `failed`), and those `left_out`."""

    async def run(self) -> None:
        """Until cancelled; then runs under way are cancelled too. It may be run again after that."""
        self._saved = await self._records.load()
        # Not what an earlier run knew: another one may have run it all since.
        self._timetable, self._jobs, self._seen = Timetable(memory=dict(self._saved)), {}, False
        async with Tasks("scheduler") as loops, Tasks("schedules") as self._tasks:
            follow = loops.spawn(self._follow(), "follow")
            while not follow.done():
                self._changed.clear()
                if not self._may_run():
                    await self._sleep(DOUBT)
                    continue
                starts, wait = self._timetable.tick(self._wall(), self._steady())
                for job in starts:
                    self._start(job)
                await self._save()
                await self._sleep(wait)
            follow.result()

    @property
    def due(self) -> dict[JobKey, float]:
        """Unix time of each job's next run."""
        return self._timetable.due()

    async def _follow(self) -> None:
        async with aclosing(self._discovery.watch()) as snapshots:  # type: ignore[type-var]
            async for snapshot in snapshots:
                self.take(snapshot)

    def take(self, snapshot: RouteSnapshot) -> None:
        """What is served now."""
        self._revisions = snapshot.revisions
        self._jobs = {job.key: job for job in _jobs(snapshot)}
        self._seen = True
        self._timetable.take(self._jobs, self._wall(), self._steady())
        self._changed.set()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _save(self) -> None:
        memory = self._timetable.remembered()
        if memory == self._saved or not self._seen:
            return
        try:
            await self._records.save(memory)
            self._saved = memory
        except BackendError as error:
            logger.error("the last runs of schedules cannot be kept: %s", error.message)

    def _start(self, job: Job) -> None:
        name = f"{job.key[1]}/{job.key[2]}"
        if self._under_way[job.key] >= AT_ONCE:
            self.outcomes["left_out"] += 1
            logger.warning("%s: %d runs by its schedule are under way; this one is left out", name, AT_ONCE)
            return
        self._under_way[job.key] += 1
        self._tasks.spawn(self._run(job, name), name)

    async def _run(self, job: Job, name: str) -> None:
        try:
            outcome = await self._call(job.revision)
            if outcome is None or (outcome.kind == "failed" and outcome.error["type"] == "unknown_endpoint"):
                # A deploy came between: this run is the new version's.
                successor = self._jobs.get(job.key)
                outcome = await self._call(successor.revision) if successor is not None else None
        finally:
            self._under_way[job.key] -= 1
            if not self._under_way[job.key]:
                del self._under_way[job.key]
        if outcome is None or (outcome.kind == "failed" and outcome.error["type"] == "draining"):
            return  # no longer served, or `up` is stopping
        self.outcomes[outcome.kind] += 1
        if outcome.kind != "result":
            error = outcome.error
            logger.warning("%s, run by its schedule, failed: %s: %s", name, error["type"], error["message"])

    async def _call(self, id: RevisionId) -> Outcome | None:
        revision = self._revisions.get(id)
        return None if revision is None else await self._caller.call(Call(revision, tell=True))


def _jobs(snapshot: RouteSnapshot) -> list[Job]:
    found = []
    for id, revision in snapshot.revisions.items():
        function = revision.function
        if function.schedule is None or function.endpoints:
            continue
        if why := fault(function.schedule):  # deployed where its timezone was known
            logger.error("%s/%s is not run: it %s", revision.app, function.tag, why)
            continue
        key = (revision.environment, revision.app, function.tag)
        found.append(Job(key, id, function.schedule, snapshot.deployed_at.get(id, 0.0)))
    return found
