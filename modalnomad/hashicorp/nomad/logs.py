"""What replicas write, read from their machines. Nomad keeps no time of a line: what was there before one looked has
the time its replica was started, what comes later the time it came. Of a replica's end it knows the time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.nomad.api import NomadApi, Output
from modalnomad.hashicorp.nomad.shapes import Allocation, Job
from modalnomad.hashicorp.nomad.words import ended_at, says_what_runs
from modalnomad.hashicorp.nomad.world import World
from modalnomad.kit.log_lines import LineSplitter
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError, NotFound
from modalnomad.model.replica import LogLine, Replica, ReplicaKey, ReplicaState
from modalnomad.render.cluster import META_REASON, TASK
from modalnomad.render.nomad import META_APP, META_ENVIRONMENT, META_FUNCTION

logger = logging.getLogger("modalnomad.nomad")

BACK: Final = 4 * 1024 * 1024
"""Bytes of each stream of a replica that are read of what it wrote before."""
LINES_KEPT: Final = 10_000
"""Lines of each stream of that."""
READ_LIMIT: Final = 30.0
"""Seconds for them to come."""
QUEUE: Final = 1000
"""Lines that wait for whoever reads."""
AGAIN: Final = 0.2
"""Seconds before a machine is asked again that has no output of a task yet."""
STREAMS: Final[tuple[Output, ...]] = ("stdout", "stderr")

Replicas = Cell[tuple[Replica, ...] | None]
Lines = AsyncGenerator[LogLine, None]


async def read_logs(api: NomadApi, world: World, replicas: Replicas, key: ReplicaKey | None, *, follow: bool) -> Lines:
    """As the engine port's `logs`. Raises NotFound, BackendError."""
    known = [replica for replica in replicas.value or () if key is None or replica.key == key]
    if key is not None and world.child(key) is None and not known:
        raise NotFound(f"there is no replica {key}")
    if follow:
        following = _Following(api, world, replicas)
        async with aclosing(following.lines(key)) as lines:
            async for line in lines:
                yield line
        return
    for each in known:
        if (job := world.child(each.key)) is not None:
            for line in await _past(api, world, replicas, job):
                yield line


async def _past(api: NomadApi, world: World, replicas: Replicas, job: Job) -> list[LogLine]:
    lines = [_line(job, job.submitted_at, "system", f"started: {job.meta.get(META_REASON, '')}")]
    if (allocation := world.allocation(job)) is not None:
        for stream in STREAMS:
            try:
                data = await api.tail(allocation.id, TASK, stream, BACK, limit=READ_LIMIT)
            except ServerRefused as error:
                if error.status in {401, 403}:
                    raise
                logger.info("%s", error.message)  # it never started, or its machine has cleaned up
                continue
            splitter = LineSplitter()
            texts = [*splitter.feed(data), *splitter.end()]
            for request_id, text in texts[len(data) >= BACK :][-LINES_KEPT:]:
                if not says_what_runs(text):
                    lines.append(_line(job, job.submitted_at, stream, text, request_id))
    lines += _end(world, job, replicas)
    return lines


def _end(world: World, job: Job, replicas: Replicas) -> Iterator[LogLine]:
    replica, allocation = _replica(job, replicas), world.allocation(job)
    if replica is not None and replica.state is not ReplicaState.STARTING:
        text = "ended" if replica.failure is None else f"failed: {replica.failure.reason}"
        yield _line(job, job.submitted_at if allocation is None else ended_at(allocation), "system", text)


def _replica(job: Job, replicas: Replicas) -> Replica | None:
    return next((replica for replica in replicas.value or () if replica.key == job.key), None)


def _lives(job: Job, replicas: Replicas) -> bool:
    replica = _replica(job, replicas)
    return replica is not None and replica.state is ReplicaState.STARTING


def _line(job: Job, at: float, stream: str, text: str, request_id: str | None = None) -> LogLine:
    meta = job.meta
    app, function, environment = (meta.get(name, "") for name in (META_APP, META_FUNCTION, META_ENVIRONMENT))
    return LogLine(at, app, function, str(job.key), stream, text, request_id, environment)  # type: ignore[arg-type]


class _Following:
    """One reader's; everything ends with it."""

    def __init__(self, api: NomadApi, world: World, replicas: Replicas) -> None:
        self._api = api
        self._world = world
        self._replicas = replicas
        self._queue: asyncio.Queue[LogLine | BackendError | None] = asyncio.Queue(QUEUE)
        self._seen: set[str] = set()

    async def lines(self, key: ReplicaKey | None) -> Lines:
        """Until that one replica ended; of all: without end."""
        async with Tasks("logs") as tasks:
            tasks.spawn(self._one(tasks, key) if key is not None else self._all(tasks), "readers")
            while (found := await self._queue.get()) is not None:
                if isinstance(found, BackendError):
                    raise found
                yield found

    async def _one(self, tasks: Tasks, key: ReplicaKey) -> None:
        job = self._world.child(key)
        if job is not None:
            await self._follow(tasks, job)
        await self._queue.put(None)

    async def _all(self, tasks: Tasks) -> None:
        watch = self._replicas.watch()
        async for replicas in watch:
            for replica in replicas or ():
                job = self._world.child(replica.key)
                if job is not None and job.name not in self._seen:
                    self._seen.add(job.name)
                    tasks.spawn(self._follow(tasks, job), f"logs of {replica.key}")

    async def _follow(self, tasks: Tasks, job: Job) -> None:
        await self._queue.put(_line(job, job.submitted_at, "system", f"started: {job.meta.get(META_REASON, '')}"))
        streams = [tasks.spawn(self._stream(job, stream), f"{stream} of {job.key}") for stream in STREAMS]
        await asyncio.gather(*streams)
        for line in _end(self._world, job, self._replicas):
            await self._queue.put(line)

    async def _stream(self, job: Job, stream: Output) -> None:
        try:
            while True:
                lived = _lives(job, self._replicas)
                allocation = self._world.allocation(job)
                if allocation is not None and await self._read(job, allocation, stream):
                    return
                if not lived:
                    return
                await asyncio.sleep(AGAIN)
        except BackendError as error:
            await self._queue.put(error)

    async def _read(self, job: Job, allocation: Allocation, stream: Output) -> bool:
        """False: its machine has none yet, or none any more."""
        splitter, at, quiet = LineSplitter(), job.submitted_at, False
        try:
            async with aclosing(self._api.follow(allocation.id, TASK, stream, size=BACK)) as frames:
                async for frame in frames:
                    for request_id, text in splitter.feed(frame.data):
                        if not says_what_runs(text):
                            await self._queue.put(_line(job, at or time.time(), stream, text, request_id))
                    if frame.data:
                        quiet = False
                        continue
                    at = 0.0
                    if quiet:
                        break
                    # One more heartbeat after its end: its last lines may be on their way to the file.
                    quiet = not _lives(job, self._replicas)
        except ServerRefused as error:
            if error.status in {401, 403}:
                raise
            return False
        for request_id, text in splitter.end():
            await self._queue.put(_line(job, at or time.time(), stream, text, request_id))
        return True
