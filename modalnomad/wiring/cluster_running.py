"""What commands ask of a cluster beside records: who runs, what it wrote, which environments there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from modalnomad.deploy.warming import ALIVE
from modalnomad.embedded.environments import EnvironmentInfo
from modalnomad.hashicorp.consul.registrations import registration
from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.model.errors import UserError
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import LogLine, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.render.cluster import REPLICA_SERVICE
from modalnomad.settings import Settings
from modalnomad.wiring.cluster import Cluster, open_cluster
from modalnomad.wiring.cluster_deploy import watching_engine
from modalnomad.wiring.cluster_prune import environment_names
from modalnomad.wiring.containers import container_of, in_order, name_of, pick

WAITING: Final = "waiting"
"""State of a container without a place."""
NO_PLACE: Final = frozenset({"no_capacity", "unplaceable"})
"""Failures of replicas that Nomad has not found a place for, and may."""


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster at one moment."""

    engine: NomadEngine
    replicas: tuple[Replica, ...]
    revisions: Mapping[RevisionId, Revision]
    """Of all kept versions."""
    ready: frozenset[ReplicaKey]
    """Those whose health check passes."""

    def alive(self) -> dict[str, tuple[Replica, Revision]]:
        """By their names for people; those of revisions no record has are left out."""
        return self._named(replica for replica in self.replicas if replica.state in ALIVE)

    def waiting(self) -> dict[str, tuple[Replica, Revision]]:
        """The same of those that Nomad starts once there is room; `failure` says what for."""
        return self._named(r for r in self.replicas if r.failure is not None and r.failure.code in NO_PLACE)

    def _named(self, replicas: Iterable[Replica]) -> dict[str, tuple[Replica, Revision]]:
        return {
            name_of(replica): (replica, self.revisions[replica.key.pool.revision])
            for replica in replicas
            if replica.key.pool.revision in self.revisions
        }


@asynccontextmanager
async def look(cluster: Cluster) -> AsyncIterator[Running]:
    """Raises BackendError: Nomad or Consul does not answer."""
    records = await cluster.discovery.apps()
    revisions = {r.id: r for record in records for version in record.versions for r in version.revisions}
    async with watching_engine(cluster) as engine:
        async with aclosing(engine.watch()) as snapshots:  # type: ignore[type-var]
            replicas = await anext(snapshots)
        found = await cluster.consul.service(REPLICA_SERVICE)
        registered = [one for one in map(registration, found.items) if one is not None]
        ready = frozenset(one.key for one in registered if one.passing)
        yield Running(engine, replicas, revisions, ready)


async def cluster_containers(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """As JSON, by environment, App, function and start."""
    async with open_cluster(settings) as cluster, look(cluster) as running:
        found = [
            container_of(
                replace(replica, state=ReplicaState.READY) if replica.key in running.ready else replica,
                revision,
                requests=None,
            )
            for replica, revision in running.alive().values()
        ]
        for replica, revision in running.waiting().values():
            waits = replica.failure.reason if replica.failure is not None else ""
            found.append(replace(container_of(replica, revision, requests=None), state=WAITING, waits=waits))
    return [asdict(container) for container in in_order(found)]


async def stop_cluster_container(settings: Settings, id: str, *, now: bool, environment: str | None) -> str:
    """SIGTERM: it lets no more requests in, finishes those it has and goes; `now`: it is killed. Raises NotFound,
    UserError, BackendError."""
    async with open_cluster(settings) as cluster, look(cluster) as running:
        alive, waiting = (
            {name: found for name, found in some.items() if environment in {None, found[1].environment}}
            for some in (running.alive(), running.waiting())
        )
        name = pick(id, {**alive, **waiting})
        if name in waiting:
            raise UserError(
                f"{name} waits for a place in Nomad: nothing of it runs",
                "it starts once there is room, and ends by itself when nobody needs it then",
            )
        replica, _ = alive[name]
        await (running.engine.kill(replica.key) if now else running.engine.terminate(replica.key))
    return name


async def cluster_environments(settings: Settings) -> tuple[EnvironmentInfo, ...]:
    """Namespaces that are environments, those of which anything is stored, and the default one."""
    async with open_cluster(settings) as cluster:
        records = await cluster.discovery.apps()
        return tuple(
            [
                EnvironmentInfo(
                    name=name,
                    apps=sum(record.environment == name for record in records),
                    stopped=sum(record.environment == name and record.current is None for record in records),
                    secrets=len(await cluster.secrets.list(name)),
                    tokens=len(await cluster.discovery.tokens(name)),
                )
                for name in await environment_names(cluster)
            ]
        )


async def cluster_logs(settings: Settings, app: str, *, follow: bool) -> AsyncIterator[LogLine]:
    """What replicas of an App of the settings' environment wrote, as long as their nodes have it; one replica after the
    other, or with `follow` as it comes. Raises BackendError."""
    async with (
        open_cluster(settings) as cluster,
        watching_engine(cluster) as engine,
        aclosing(engine.logs(None, follow=follow)) as lines,  # type: ignore[type-var]
    ):
        async for line in lines:
            if line.app == app and line.environment == settings.environment:
                yield line
