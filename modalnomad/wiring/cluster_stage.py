"""A cluster as a deploy sees it: the deployer itself registers jobs and starts replicas, routers follow the record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final

from modalnomad.deploy.stage import Stage
from modalnomad.deploy.warming import ALIVE, WARM, all_or_first_error, count_warm
from modalnomad.hashicorp.consul.registrations import watch_registrations
from modalnomad.hashicorp.consul.routers import RouterInfo, routers
from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.kit.clock import monotonic
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError, BackendRefused, BackendUnreachable, UserCodeFailed
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.render.cluster import CONSUL_META_LIMIT, encode
from modalnomad.wiring.cluster import Cluster

LOOK: Final = 0.25
"""Seconds between two looks at what routers serve."""
TOLD_AFTER: Final = 5.0
"""Seconds a router may take to follow a record before it is named."""

logger = logging.getLogger("modalnomad.deploy")
PULLED_WITHIN: Final = 900.0
"""Seconds that all nodes together have to pull an image; each has Nomad's own limit besides."""
READY_TOLD: Final = 2.0
"""Seconds for Consul to say first whose health check passes; then it is nobody's."""


class ClusterStage(Stage):
    """One deploy's. `replicas` and `ready` are kept up to date by whoever opened it."""

    def __init__(self, cluster: Cluster, engine: NomadEngine) -> None:
        self._cluster = cluster
        self._engine = engine
        self.replicas: Cell[tuple[Replica, ...] | None] = Cell(None)
        """As the engine says; None: not known yet."""
        self.ready: Cell[frozenset[ReplicaKey] | None] = Cell(None)
        """Those whose health check passes; None: not known yet."""
        self._started: set[ReplicaKey] = set()
        self._brought: dict[RevisionId, Revision] = {}
        self._pulls: dict[str, asyncio.Lock] = {}
        self._pulled: set[str] = set()

    async def _known(self) -> Sequence[Replica]:
        return await self.replicas.until(lambda replicas: replicas is not None) or ()

    async def serving(self) -> bool:
        """Whether a router runs, as far as that can be told."""
        try:
            return bool(await self._routers())
        except BackendError:
            return True

    async def warm_counts(self, revision: RevisionId) -> Mapping[str, int]:
        """As the protocol says."""
        return count_warm(await self._known(), revision)

    async def apart(self, revision: Revision) -> bool:
        """Where it asks for a GPU and none is free: its predecessor may hold the one there is."""
        if not revision.function.resources.gpu:
            return False
        return (await self._engine.explain(revision)).answer == "not_now"

    async def prepare(self, revision: Revision) -> None:
        """As the protocol says."""
        self._brought.setdefault(revision.id, revision)
        await self._engine.prepare(revision)
        await self._pull(revision)

    async def renew(self, revisions: Collection[Revision]) -> tuple[str, ...]:
        """Their jobs are registered anew where they are rendered otherwise now, or somebody stopped or changed one."""
        renewed: list[str] = []

        async def renew(revision: Revision) -> None:
            if await self._engine.renew(revision):
                renewed.append(revision.function.tag)

        await all_or_first_error([renew(revision) for revision in revisions])
        return tuple(sorted(renewed))

    async def _pull(self, revision: Revision) -> None:
        """A container's image is on every node before requests are sent there: pulling takes longer than they wait."""
        if revision.image.reference is None:
            return
        async with self._pulls.setdefault(revision.image.digest, asyncio.Lock()):
            if revision.image.digest in self._pulled:
                return
            try:
                async with asyncio.timeout(PULLED_WITHIN):
                    await self._engine.prewarm(revision)
            except BackendRefused as error:
                raise BackendRefused(
                    f"the image of {revision.app}/{revision.function.tag} is not on every node: {error.message}",
                    "nodes pull from the address in docker.registry: can that one, and is it logged in there?",
                ) from error
            except TimeoutError:
                raise BackendRefused(
                    f"the image of {revision.app}/{revision.function.tag} was not on every node within "
                    f"{PULLED_WITHIN:g} s",
                    f"look at the job {revision.app}.prewarm.{revision.image.digest[:12]} in Nomad while it runs",
                ) from None
            self._pulled.add(revision.image.digest)

    async def warm(self, revision: Revision, parameters: str, count: int) -> None:
        """As the protocol says. Readiness is what the health check says, once a second."""
        if not await self.serving():
            raise BackendRefused(
                "no replica can be started ahead: no router runs, and nodes get their code from routers",
                "start one: modalnomad router",
            )
        await self.prepare(revision)
        pool = PoolKey(revision.id, parameters)
        limit = revision.function.scaling.max_containers
        count = count if limit is None else min(count, max(1, limit))
        keys = [await self._start(pool, number) for number in range(count)]
        if len(encode(parameters)) <= CONSUL_META_LIMIT:  # longer ones Consul is not told of: they are only started
            # The others were ready a moment ago. That one of them leaves by now says nothing about the program.
            mine = [key for key in keys if key in self._started]
            await all_or_first_error([self._until_ready(revision, key) for key in mine])

    async def _start(self, pool: PoolKey, number: int) -> ReplicaKey:
        """Its own that lives, or one that is ready. Another one that lives may be on its way out: routers send away
        what a deploy a short while ago replaced, and Nomad does not know of it."""
        mine = [r for r in await self._known() if r.key.pool == pool and r.key.number == number]
        for replica in mine:
            if replica.state in WARM and (replica.key in self._started or await self._is_ready(replica.key)):
                return replica.key
        key = ReplicaKey(pool, number, 1 + max((replica.key.epoch for replica in mine), default=0))
        self._started.add(key)
        await self._engine.start(key, "deploy: as warm as the version before")
        return key

    async def _is_ready(self, key: ReplicaKey) -> bool:
        if self.ready.value is None:
            try:
                async with asyncio.timeout(READY_TOLD):
                    await self.ready.until(lambda keys: keys is not None)
            except TimeoutError:
                self.ready.set(self.ready.value or frozenset())
        return key in (self.ready.value or ())

    async def _until_ready(self, revision: Revision, key: ReplicaKey) -> None:
        def ended(replicas: Collection[Replica] | None) -> Replica | None:
            found = (replica for replica in replicas or () if replica.key == key)
            return next((r for r in found if r.state in {ReplicaState.FAILED, ReplicaState.GONE}), None)

        limit = revision.function.start_limit + self._cluster.settings.nomad.grace_period
        async with Tasks("warming") as tasks:
            ready = tasks.spawn(self.ready.until(lambda keys: keys is not None and key in keys), "ready")
            over = tasks.spawn(self.replicas.until(lambda replicas: ended(replicas) is not None), "over")
            await asyncio.wait([ready, over], return_when=asyncio.FIRST_COMPLETED, timeout=limit)
        if key in (self.ready.value or ()):
            return
        name = f"{revision.app}/{revision.function.tag}"
        if (replica := ended(self.replicas.value)) is not None:
            failure = replica.failure
            reason = failure.reason if failure is not None else "it ended before it was ready"
            raise UserCodeFailed(f"{name} does not start: {reason}", failure.detail if failure else "")
        raise BackendRefused(
            f"{name} was started, and Consul did not say within {limit:g} s that its health check passes",
            "is Nomad's agent on its node told where Consul is? `modalnomad doctor` looks",
        )

    async def follow(self, earlier: RevisionId, successor: RevisionId) -> None:
        """Nothing to arrange: the successor is placed when Nomad has room for it, which its predecessor makes by
        draining."""

    async def served(self, app: str, environment: str, serial: int) -> None:
        """Return when every router that runs says so; none may run. Those that take long are named."""
        self._started.clear()  # theirs from now on
        told = monotonic() + TOLD_AFTER
        while True:
            behind = [info for info in await self._routers() if not _serves(info, app, environment, serial)]
            if not behind:
                return
            if monotonic() >= told:
                told = float("inf")
                names = ", ".join(f"{info.name} (port {info.port})" for info in behind)
                logger.warning("published, and not taken up yet by the router %s", names)
            await asyncio.sleep(LOOK)

    async def _routers(self) -> tuple[RouterInfo, ...]:
        return await routers(self._cluster.consul, self._cluster.settings.consul.prefix)

    async def end(self, revision: RevisionId) -> None:
        """As the protocol says."""
        alive = [r.key for r in await self._known() if r.key.pool.revision == revision and r.state in ALIVE]
        await asyncio.gather(*(self._engine.kill(key) for key in alive))

    async def direct_urls(self, hosts: tuple[str, ...]) -> Mapping[str, str]:
        """None: routers may be many."""
        return {}

    async def _take_back(self, revision: RevisionId, *, kept: bool) -> None:
        """`kept`: its job stays, for rollbacks. Replicas that it did not start finish what they do, and keep their job:
        of a version that is not kept any more, or of another deploy of the same, which this one's lost lock let in.
        Pruning removes it after them. Its own go whether they are known to live or not: one without a place would start
        when there is room."""
        known = self.replicas.value or ()
        alive = {r.key for r in known if r.key.pool.revision == revision and r.state in ALIVE}
        if alive <= self._started and not kept:
            await self._engine.retire(revision)
        else:
            await self._engine.take_back({key for key in self._started if key.pool.revision == revision})

    async def close(self) -> None:
        """What it started and is not served by now is ended; what it brought and is in no record is forgotten too. What
        cannot be is told: there is an error or an interrupt on its way already, which says what holds."""
        if not self._brought:
            return
        try:
            records = await self._cluster.discovery.apps()
        except BackendError as error:
            _tell_left(self._brought, f"was not taken back: {error.message}. What no record names serves nobody")
            return  # it may have been published
        kept = {revision.id for record in records for version in record.versions for revision in version.revisions}
        served = {revision.id for record in records for revision in record.revisions}
        left = {id: revision for id, revision in self._brought.items() if id not in served}
        reason = ""
        for id in list(left):
            try:
                await self._take_back(id, kept=id in kept)
                del left[id]
            except BackendError as error:
                reason = error.message
                if isinstance(error, BackendUnreachable):
                    break
        if left:
            _tell_left(left, f"could not be taken back: {reason}. It serves nobody")


def _tell_left(left: Mapping[RevisionId, Revision], why: str) -> None:
    names = ", ".join(f"{revision.app}/{revision.function.tag}" for revision in left.values())
    logger.warning(
        "what was brought to Nomad for %s %s; a deploy or `modalnomad prune` in more than an hour removes it",
        names,
        why,
    )


def _serves(info: RouterInfo, app: str, environment: str, serial: int) -> bool:
    if info.environment not in {"", environment}:
        return True
    return info.serials.get(f"{environment}/{app}", 0) >= serial


@asynccontextmanager
async def open_cluster_stage(cluster: Cluster, engine: NomadEngine) -> AsyncIterator[ClusterStage]:
    """What it follows ends with it, and so does the engine, which is opened here."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        await engine.open()
        stage = ClusterStage(cluster, engine)
        tasks = await stack.enter_async_context(Tasks("stage"))
        tasks.spawn(_follow_replicas(stage, engine), "replicas")
        tasks.spawn(_follow_ready(stage, cluster), "ready")
        stack.push_async_callback(stage.close)
        yield stage


async def _follow_replicas(stage: ClusterStage, engine: NomadEngine) -> None:
    async with aclosing(engine.watch()) as snapshots:  # type: ignore[type-var]
        async for snapshot in snapshots:
            stage.replicas.set(snapshot)


async def _follow_ready(stage: ClusterStage, cluster: Cluster) -> None:
    async with aclosing(watch_registrations(cluster.consul)) as snapshots:  # type: ignore[type-var]
        async for snapshot in snapshots:
            stage.ready.set(frozenset(each.key for each in snapshot if each.passing))
