"""Keeps a `World` like Nomad: an event stream for each environment and one for the nodes, everything listed again when
one opens and once a minute.

`namespace=*` needs a token for all namespaces, even of other people; so each environment is watched by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from modalnomad.hashicorp.nomad.api import NomadApi, readable
from modalnomad.hashicorp.nomad.events import Event, follow
from modalnomad.hashicorp.nomad.shapes import Job, allocation_of, job_of
from modalnomad.hashicorp.nomad.world import World, job_name
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError
from modalnomad.render.cluster import META_EPOCH, META_NUMBER, NAMESPACE_PREFIX, environment_of

logger = logging.getLogger("modalnomad.nomad")

RELIST: Final = 60.0
"""Seconds between two whole lists of what lives."""
TRIES: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before environments are asked for again; the last one repeats."""
LIVE_JOBS: Final = 'Status != "dead"'
LIVE_ALLOCATIONS: Final = 'ClientStatus == "pending" or ClientStatus == "running"'
NODES: Final = ""
"""Stands for the nodes where an environment's namespace stands."""


OnDeath = Callable[[str, BaseException], None] | None
"""Told of a watch that ended by itself, see `Tasks`."""


class Mirror:
    """`changed` is called when the world is another one. Reads only."""

    def __init__(
        self,
        api: NomadApi,
        world: World,
        changed: Callable[[], None],
        *,
        relist: float = RELIST,
        on_death: OnDeath = None,
    ) -> None:
        self._api = api
        self._world = world
        self._changed = changed
        self._relist_each = relist
        self._tasks = Tasks("nomad", on_death)
        self._feeds: dict[str, list[asyncio.Task[None]]] = {}
        self._streaming: set[str] = set()
        self._listed: set[str] = set()
        self._stale: dict[str, float] = {}
        self._look_again = asyncio.Event()
        self.complete = asyncio.Event()
        """Everything was listed once."""
        self.environments_known = False

    def open(self) -> None:
        """Begin. What cannot be reached is tried until it can."""
        self._stale[NODES] = self._stale["*"] = time.time()
        self._follow(NODES)
        self._tasks.guard(self._environments(), "environments")

    async def close(self) -> None:
        """End all of it."""
        await self._tasks.close()

    @property
    def stale_since(self) -> float | None:
        """Unix time since when some of the world is only what it was then; None: all of it is true now."""
        return min(self._stale.values(), default=None)

    def streaming(self, namespace: str) -> bool:
        """Whether what happens there is told at once."""
        return namespace in self._streaming

    def look_for_environments(self) -> None:
        """There may be new ones."""
        self._look_again.set()

    # --- environments ----------------------------------------------------------------------------------------------

    async def _environments(self) -> None:
        failures = 0
        while True:
            self._look_again.clear()
            try:
                names = await self._api.namespaces(NAMESPACE_PREFIX)
            except BackendError as error:
                logger.warning("%s", error.message)
                self._stale.setdefault("*", time.time())
                pause = TRIES[min(failures, len(TRIES) - 1)]
                failures += 1
            else:
                failures, pause = 0, self._relist_each
                self._watch_only({name for name in names if environment_of(name) is not None})
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._look_again.wait()

    def _watch_only(self, namespaces: set[str]) -> None:
        missing = self._feeds.keys() - namespaces - {NODES}
        # Nomad removes no namespace whose jobs are not dead: it is the answer that lacks them (that to a token which
        # lost its rights is an empty one).
        doubted = {name for name in missing if self._world.lives(name)}
        believed = not doubted and self._stale.pop("*", None) is not None
        if doubted:
            self._stale.setdefault("*", time.time())
            logger.warning("Nomad's list of namespaces lacks %s, where jobs live", ", ".join(sorted(doubted)))
        for gone in missing - doubted:
            for task in self._feeds.pop(gone):
                task.cancel()
            self._streaming.discard(gone)
            self._stale.pop(gone, None)
            self._world.forget_namespace(gone)
            self._changed()
        for new in sorted(namespaces - self._feeds.keys()):
            self._stale[new] = time.time()
            self._follow(new)
        self.environments_known = True
        self._check_complete()
        if believed:  # told last: what is new has not been read, and nobody shall believe that it is empty
            self._changed()

    def _follow(self, namespace: str) -> None:
        topics = ("Node",) if namespace == NODES else ("Job", "Evaluation", "Allocation")

        async def opened() -> None:
            await self._list(namespace, dead_too=True)
            self._streaming.add(namespace)

        async def lost(error: BackendError) -> None:
            self._streaming.discard(namespace)
            try:
                await self._list(namespace, dead_too=namespace not in self._listed)
            except BackendError:
                self._stale.setdefault(namespace, time.time())

        self._feeds[namespace] = [
            self._tasks.spawn(
                follow(self._api, topics, namespace or "default", opened=opened, heard=self._heard, lost=lost),
                f"events of {namespace or 'nodes'}",
            ),
            self._tasks.spawn(self._again(namespace), f"lists of {namespace or 'nodes'}"),
        ]

    def _heard(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self._world.hear(event)
        self._changed()

    async def _again(self, namespace: str) -> None:
        while True:
            await asyncio.sleep(self._relist_each)
            try:
                await self._list(namespace, dead_too=False)
            except BackendError as error:
                logger.warning("%s", error.message)

    # --- listing ---------------------------------------------------------------------------------------------------

    async def _list(self, namespace: str, *, dead_too: bool) -> None:
        with readable(f"lists of {namespace or 'nodes'}"):
            if namespace == NODES:
                self._world.merge_nodes(await self._api.nodes())
            else:
                await self._list_jobs(namespace, dead_too=dead_too)
        self._listed.add(namespace)
        self._stale.pop(namespace, None)
        self._check_complete()
        self._changed()

    async def _list_jobs(self, namespace: str, *, dead_too: bool) -> None:
        """All is read before any of it is merged: nobody sees half of it."""
        world, api = self._world, self._api
        jobs = await api.jobs(namespace, filter="" if dead_too else LIVE_JOBS)
        allocations = await api.allocations(namespace, filter="" if dead_too else LIVE_ALLOCATIONS)
        placed = {str(shape["JobID"]) for shape in allocations.items}
        children = [job for job in map(job_of, jobs.items) if job.key is not None and job.status != "dead"]
        waiting = [job for job in children if job.id not in placed and world.allocation(job) is None]
        evaluations = [await api.evaluations_of(job.id, namespace) for job in waiting]
        missing = world.merge_jobs(namespace, jobs)
        for shape in allocations.items:
            world.take_allocation(shape, allocations.index)
        for listing in evaluations:
            for shape in listing.items:
                world.take_evaluation(shape, listing.index)
        if dead_too:
            for job in missing:
                world.forget_job(job, jobs.index)
            return
        for job in missing:
            allocation = world.allocation(job)
            if job.status != "dead" or (allocation is not None and allocation.alive and job.id not in placed):
                await self.refresh(job)

    async def refresh(self, job: Job) -> None:
        """Read one job and what belongs to it; of a replica all that were started as it. Raises BackendError."""
        if job.key is not None:
            same = f'ParentID == "{job.parent}" and Meta.{META_NUMBER} == "{job.key.number}"'
            twins = await self._api.jobs(job.namespace, filter=f'{same} and Meta.{META_EPOCH} == "{job.key.epoch}"')
            with readable("a list of jobs"):
                for shape in twins.items:
                    self._world.take_job(shape, twins.index)
        with readable(f"what belongs to {job.id}"):
            await self._refresh(job)

    async def _refresh(self, job: Job) -> None:
        found = await self._api.job(job.id, job.namespace)
        if found is None:
            self._world.forget_job(job, job.index)
        else:
            allocations = await self._api.allocations(job.namespace, filter=f'JobID == "{job.id}"')
            evaluations = None
            if not allocations.items:
                evaluations = await self._api.evaluations_of(job.id, job.namespace)
            self._world.take_job(found, job_of(found).index)
            for shape in allocations.items:
                self._world.take_allocation(shape, allocation_of(shape).index)
            for shape in evaluations.items if evaluations is not None else ():
                self._world.take_evaluation(shape, evaluations.index if evaluations is not None else 0)
        self._changed()

    async def find_parents(self, revision: str) -> None:
        """Read the jobs of a revision in all environments. Raises BackendError."""
        wanted = f'Meta.revision == "{revision}" and ParentID == ""'
        listing = await self._api.jobs("*", filter=wanted)
        with readable("a list of jobs"):
            for shape in listing.items:
                if environment_of(str(shape.get("Namespace"))) is not None:
                    self._world.take_job(shape, listing.index)
                    if str(shape["Namespace"]) not in self._feeds:
                        self.look_for_environments()
        self._changed()

    async def find_child(self, namespace: str, id: str) -> None:
        """Read a child that was not heard of. Raises BackendError."""
        found = await self._api.job(id, namespace)
        if found is not None:
            with readable(f"the job {id}"):
                self._world.take_job(found, job_of(found).index)
            job = self._world.job(job_name(namespace, id))
            if job is not None:
                await self.refresh(job)

    def _check_complete(self) -> None:
        if self.environments_known and self._feeds.keys() <= self._listed:
            self.complete.set()
