"""The engine of a cluster: replicas are children of a revision's job, started by dispatch, watched by events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final, Protocol, Self

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.dispatching import Dispatcher, SecretTexts
from modalnomad.hashicorp.nomad.explaining import explain
from modalnomad.hashicorp.nomad.lastwords import last_words
from modalnomad.hashicorp.nomad.logs import read_logs
from modalnomad.hashicorp.nomad.mirror import RELIST, Mirror, OnDeath
from modalnomad.hashicorp.nomad.parents import Parents, Renderings, Versions
from modalnomad.hashicorp.nomad.prewarming import Told, prewarm
from modalnomad.hashicorp.nomad.remarks import cluster_remarks
from modalnomad.hashicorp.nomad.shapes import Allocation, Job
from modalnomad.hashicorp.nomad.view import View, with_registrations
from modalnomad.hashicorp.nomad.world import World
from modalnomad.kit.clock import monotonic
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError, BackendRefused, ModalNomadError
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Function, Notice
from modalnomad.model.replica import Address, LogLine, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.ports.engine import Engine, Verdict
from modalnomad.render.cluster import META_KEY, META_SECRETS, TASK

logger = logging.getLogger("modalnomad.nomad")

FIRST_LOOK: Final = 5.0
"""Seconds that the first snapshot waits for Nomad to be read."""
KILL_LIMIT: Final = 15.0
"""Seconds for a replica to be gone once it is killed."""
KILL_PAUSE: Final = 0.1
"""Seconds between two signals to a task that does not run yet."""
UNSURE: Final = 1.0
"""Seconds before Nomad is asked again about a child that nothing is heard of."""
PLACE_LIMIT: Final = 3.0
"""Seconds for a child that is to be killed to get its place; nobody can cancel it before."""


class Registered(Protocol):
    """One replica as Consul has it (`consul.registrations.Registration`)."""

    @property
    def key(self) -> ReplicaKey:
        """Which it is."""

    @property
    def address(self) -> Address:
        """Where it is to listen."""


Registrations = Callable[[], AsyncIterator[Iterable[Registered]]]
"""Whole snapshots of what Consul has, without end."""


class NomadEngine(Engine):
    """Port `Engine` on Nomad. Only `open`, or the first call that needs it, begins to watch; `close` ends that and
    leaves every replica as it is. What Nomad last said stands while it cannot be read: see `stale_since`.

    `rendering`, `version_of`: for jobs that are registered. `registrations`: what Consul has, which counts while Nomad
    cannot be read. `secret_versions`: `db=3,api=1` of a revision, raising BackendError where a start would fail for it.
    `environment_of`: where a revision belongs, None: unknown; jobs of other environments that name it are not its.
    `router`: who starts replicas, for people.
    """

    def __init__(
        self,
        *,
        api: NomadApi,
        rendering: Renderings,
        version_of: Versions,
        registrations: Registrations | None = None,
        secret_versions: SecretTexts | None = None,
        environment_of: Callable[[RevisionId], str | None] = lambda revision: None,
        router: str = "",
        relist: float = RELIST,
        view: View | None = None,
        on_death: OnDeath = None,
    ) -> None:
        self._api = api
        self._parents = Parents(api, rendering, version_of)
        self._registrations = registrations
        self._world = World(environment_of)
        self._view = view or View()
        self._mirror = Mirror(api, self._world, self._publish, relist=relist, on_death=on_death)
        self._dispatcher = Dispatcher(api, self._world, self._mirror, secret_versions, router)
        self._tasks = Tasks("engine", on_death)
        self._opening: asyncio.Task[None] | None = None
        self._twins: set[str] = set()
        self._starting: dict[ReplicaKey, asyncio.Task[ModalNomadError | None]] = {}
        self._registered: dict[ReplicaKey, Address] = {}
        self._replicas: Cell[tuple[Replica, ...] | None] = Cell(None)
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # --- watching ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to watch. Returns when Nomad was read, or after FIRST_LOOK seconds without. Twice does nothing more."""
        if self._closed:
            raise BackendRefused("the engine is closed")
        if self._opening is None:
            self._opening = self._tasks.spawn(self._open(), "open")
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        self._mirror.open()
        if self._registrations is not None:
            self._tasks.guard(self._follow_registrations(self._registrations), "registrations")
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK):
                await self._mirror.complete.wait()
        self._replicas.set(self._look())

    async def close(self) -> None:
        """End the watches. Twice does nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()
        await self._mirror.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def stale_since(self) -> float | None:
        """Unix time since when Nomad, or some of it, cannot be read; None: it can, or is not watched."""
        return self._mirror.stale_since

    async def watch(self) -> AsyncIterator[tuple[Replica, ...]]:
        """Whole snapshots of all replicas of all environments, the first as soon as Nomad was read."""
        await self.open()
        snapshots = self._replicas.watch()
        async with aclosing(snapshots):  # type: ignore[type-var]
            async for replicas in snapshots:
                if replicas is not None:
                    yield replicas

    def _look(self) -> tuple[Replica, ...]:
        now = monotonic()
        replicas = self._view.look(self._world, now, time.time())
        for allocation in self._view.wanted:
            self._tasks.spawn(self._tell_last_words(allocation), f"last words of {allocation.id[:8]}")
        for key in self._view.twins & self._dispatcher.asked:
            for job in self._world.twins(key)[1:]:
                if job.name not in self._twins:
                    self._twins.add(job.name)
                    self._tasks.spawn(self._end_twin(job), f"end {job.id}")
        for job in self._view.doubted:
            self._tasks.spawn(self._make_sure(job), f"look at {job.id}")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._view.due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._view.due - now), self._publish)
        return replicas if self.stale_since is None else with_registrations(replicas, self._registered)

    def _publish(self, *, always: bool = False) -> None:
        """After each change. Nothing is told before everything was read once, or could not be."""
        if self._closed or (self._replicas.value is None and not self._mirror.complete.is_set()):
            return
        replicas = self._look()
        if always or replicas != self._replicas.value:
            self._replicas.set(replicas)

    async def _tell_last_words(self, allocation: Allocation) -> None:
        self._view.tell(allocation.id, await last_words(self._api, allocation))
        self._world.touch(allocation)
        self._publish()

    async def _end_twin(self, job: Job) -> None:
        """Two dispatches with one token at the same time started two; this one came second. Whoever asked for it ends
        it; where that fails it drains itself, because nobody ever talks to it."""
        logger.warning("Nomad started %s twice; %s is ended", job.key, job.id)
        until = monotonic() + KILL_LIMIT
        while monotonic() < until and self._world.job(job.name) is not None:
            allocation = self._world.allocation(job)
            if allocation is not None and not allocation.alive:
                return
            try:
                if allocation is not None and await self._signal(allocation):
                    return
            except BackendError as error:
                logger.warning("%s", error.message)
            await asyncio.sleep(KILL_PAUSE)
        self._twins.discard(job.name)  # it has no place yet: it is ended when it gets one

    async def _make_sure(self, job: Job) -> None:
        try:
            await self._mirror.refresh(job)
        except BackendError as error:
            logger.warning("%s", error.message)
            await asyncio.sleep(UNSURE)
            self._view.read(job.name, done=False)
        else:
            self._view.read(job.name, done=True)
        self._world.touch_job(job.name)
        self._publish()

    async def _follow_registrations(self, registrations: Registrations) -> None:
        snapshots = registrations()
        async with aclosing(snapshots):  # type: ignore[type-var]
            async for snapshot in snapshots:
                self._registered = {each.key: each.address for each in snapshot}
                if self.stale_since is not None:
                    self._publish()

    def started_with(self) -> Mapping[ReplicaKey, str]:
        """Live replicas and the versions of the secrets they were started with, `db=3,api=1`; empty: they have none."""
        found = {}
        for replica in self._replicas.value or ():
            if replica.state is ReplicaState.STARTING and (job := self._world.child(replica.key)) is not None:
                found[replica.key] = job.meta.get(META_SECRETS, "")
        return found

    def started_otherwise(self) -> Mapping[ReplicaKey, str]:
        """Live replicas whose ticket is of another platform key than their revision's job has now, or may be, and that
        in words."""
        found = {}
        for key in self.started_with():
            parents, child = self._world.parents(key.pool.revision), self._world.child(key)
            wanted = parents[0].meta.get(META_KEY) if parents and not parents[0].stopped else None
            if wanted and child is not None and (mark := child.meta.get(META_KEY)) != wanted:
                unknown = "its job does not say with which platform key its ticket was made"
                found[key] = "its ticket is of an earlier platform key" if mark else unknown
        return found

    def replace(self, reasons: Mapping[ReplicaKey, str]) -> None:
        """These replicas, and no others, should be replaced before they go (`Replica.leaving`), beside those whose
        machine is drained."""
        self._view.leaving = dict(reasons)
        self._publish()

    # --- revisions -----------------------------------------------------------------------------------------------

    async def prepare(self, revision: Revision) -> None:
        """Register its job, if it is not there as it should be. Raises UserError, BackendError."""
        await self.renew(revision)

    async def renew(self, revision: Revision) -> bool:
        """The same. Returns whether it had to be registered."""
        return await self._parents.prepare(revision)

    async def retire(self, revision: str) -> None:
        """Take its job away and kill its replicas. Unknown: nothing. Raises BackendError."""
        await self._parents.retire(revision)
        if self._opening is not None:
            for parent in self._world.parents(revision):
                await self._mirror.refresh(parent)

    async def take_back(self, keys: Collection[ReplicaKey]) -> None:
        """Kill these replicas, also where they have no place yet: for whoever may stop jobs. Raises BackendError."""
        if starting := [task for key, task in self._starting.items() if key in keys]:
            await asyncio.wait(starting)
        await self._parents.end(keys)

    async def alive(self, revision: str) -> int:
        """How many replicas of it Nomad runs or means to. Raises BackendError."""
        return await self._parents.alive(revision)

    async def explain(self, revision: Revision) -> Verdict:
        """What Nomad's scheduler would say. Raises BackendError."""
        return await explain(self._api, self._parents, revision)

    async def prewarm(self, revision: Revision, told: Told = lambda done, total: None) -> int:
        """Make its environment on every node it may run on. Returns on how many. Raises UserError, BackendError."""
        return await prewarm(self._api, await self._parents.prewarm_body(revision), told)

    async def remarks(self, functions: Sequence[Function]) -> tuple[Notice, ...]:
        """What has no effect on a cluster."""
        return tuple(cluster_remarks(functions))

    # --- replicas ------------------------------------------------------------------------------------------------

    async def start(self, key: ReplicaKey, reason: str, *, request_id: str = "") -> None:
        """Dispatch it. The same key twice starts once, whoever asks. Cancelling the call does not stop the start.
        Raises NotFound."""
        task = self._starting.get(key)
        if task is None:
            task = self._starting[key] = self._tasks.spawn(self._start(key, reason, request_id), f"start {key}")
            task.add_done_callback(lambda _: self._starting.pop(key, None))
        try:
            error = await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise BackendRefused("the engine is closed") from None
            raise
        if error is not None:
            raise error

    async def _start(self, key: ReplicaKey, reason: str, request_id: str) -> ModalNomadError | None:
        await self.open()
        if self._world.child(key) is not None:
            self._view.recall(key, monotonic())
            self._publish(always=True)
            return None
        began = time.time()
        try:
            failure = await self._dispatcher.dispatch(key, reason, request_id)
        except ModalNomadError as error:
            return error
        if failure is not None:
            refused = Replica(key, ReplicaState.FAILED, failure=failure, started_at=began, reason=reason)
            self._view.refuse(refused, monotonic())
        elif (job := self._world.child(key)) is not None and not self._mirror.streaming(job.namespace):
            self._tasks.spawn(self._dispatcher.look_after(job), f"look after {key}")
        self._publish(always=True)
        return None

    async def kill(self, key: ReplicaKey) -> None:
        """SIGKILL to its task. Unknown or ended: nothing happens. Returns when it is gone, also when Nomad has started
        it once more elsewhere meanwhile: that one lives. Raises BackendError: it waits for a place, which nobody can
        take back; Nomad or its machine does not answer."""
        await self.open()
        if (starting := self._starting.get(key)) is not None:
            await asyncio.wait([starting])
        if self._living(key) is None:
            return
        self._view.killed.add(key)
        try:
            async with asyncio.timeout(KILL_LIMIT):
                await self._kill(key)
        except TimeoutError as error:
            raise BackendRefused(f"{key} has not ended within {KILL_LIMIT:g} s of being killed") from error
        finally:
            if self._living(key) is not None:
                self._view.killed.discard(key)

    def _living(self, key: ReplicaKey) -> Replica | None:
        replica = self._view.get(key)
        return replica if replica is not None and replica.state is ReplicaState.STARTING else None

    async def _kill(self, key: ReplicaKey) -> None:
        placed_by = monotonic() + PLACE_LIMIT
        meant = None
        while self._living(key) is not None and (job := self._world.child(key)) is not None:
            allocation = self._world.allocation(job)
            if allocation is not None and allocation.id != (meant := meant or allocation.id):
                return
            if allocation is None and monotonic() >= placed_by:
                raise BackendRefused(f"{key} waits for a place in Nomad, which a router cannot take back")
            sent = allocation is not None and await self._signal(allocation)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0 if sent else KILL_PAUSE):
                    await self._replicas.until(lambda _: self._living(key) is None)
            if self._living(key) is not None and not self._mirror.streaming(job.namespace):
                await self._mirror.refresh(job)

    async def terminate(self, key: ReplicaKey) -> None:
        """SIGTERM to its task: it lets no more requests in, finishes those it has and goes. Unknown or ended: nothing
        happens. Raises BackendError, also when its task does not run within PLACE_LIMIT seconds."""
        await self.open()
        until = monotonic() + PLACE_LIMIT
        while self._living(key) is not None and (job := self._world.child(key)) is not None:
            allocation = self._world.allocation(job)
            if allocation is not None and await self._signal(allocation, "SIGTERM"):
                return
            if monotonic() >= until:
                raise BackendRefused(f"{key} cannot be told to end: its task does not run yet", "try it again later")
            await asyncio.sleep(KILL_PAUSE)

    async def _signal(self, allocation: Allocation, signal: str = "SIGKILL") -> bool:
        """False: its task does not run. Raises BackendError."""
        try:
            await self._api.signal(allocation.id, TASK, signal)
        except ServerRefused as error:
            if error.status in {401, 403}:
                raise
            return False
        return True

    def logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        """Lines of one replica, or of all, as long as the machine has them. Raises NotFound at the first step."""
        return self._logs(key, follow=follow)

    async def _logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        await self.open()
        lines = read_logs(self._api, self._world, self._replicas, key, follow=follow)
        async with aclosing(lines):
            async for line in lines:
                yield line
