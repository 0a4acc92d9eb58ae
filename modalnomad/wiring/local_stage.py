"""Stage in the platform's own process, and its calls over the control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import Field

from modalnomad.deploy.stage import Stage
from modalnomad.deploy.warming import ALIVE, count_warm
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendError, BackendRefused
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Model
from modalnomad.model.replica import PoolKey
from modalnomad.model.revision import Revision
from modalnomad.scaling.decide import KEPT
from modalnomad.wiring.control_server import Call, ControlServer
from modalnomad.wiring.following import Following
from modalnomad.wiring.parts import Parts
from modalnomad.wiring.revisions import Revisions
from modalnomad.wiring.shared import SharedDiscovery


class LocalStage(Stage):
    """One deploy's. `close` ends and forgets what it brought and no record serves."""

    def __init__(self, parts: Parts, discovery: SharedDiscovery, revisions: Revisions, following: Following) -> None:
        self._parts = parts
        self._discovery = discovery
        self._revisions = revisions
        self._following = following

    def _hold(self, revision: Revision) -> None:
        if self._is_foreign(revision.environment):
            raise self._refusal(revision.environment)
        self._revisions.hold(revision, self)

    def _is_foreign(self, environment: str) -> bool:
        return self._discovery.environment not in {None, environment}

    def _refusal(self, environment: str) -> BackendRefused:
        return BackendRefused(
            f"the modalnomad up that runs serves the environment {self._discovery.environment} only, not {environment}",
            "start it without --env: it serves all of them then",
        )

    async def warm_counts(self, revision: RevisionId) -> Mapping[str, int]:
        """As the protocol says."""
        return count_warm(self._parts.pools.replicas.value, revision)

    async def apart(self, revision: Revision) -> bool:
        """As the protocol says."""
        if revision.function.web_ports:
            # Whether ports can be kept apart is known once one is prepared that has any.
            await self.prepare(revision)
        return self._parts.engine.apart(revision)

    async def prepare(self, revision: Revision) -> None:
        """As the protocol says."""
        self._hold(revision)
        await self._parts.engine.prepare(revision)

    async def renew(self, revisions: Collection[Revision]) -> tuple[str, ...]:
        """Nothing to do: it starts what it serves as its own settings say."""
        return ()

    async def warm(self, revision: Revision, parameters: str, count: int) -> None:
        """As the protocol says."""
        self._hold(revision)
        self._revisions.order(revision)
        await self._parts.pools.warm(revision, PoolKey(revision.id, parameters), count)

    async def follow(self, earlier: RevisionId, successor: RevisionId) -> None:
        """As the protocol says."""
        self._parts.engine.after(successor, earlier)

    async def served(self, app: str, environment: str, serial: int) -> None:
        """As the protocol says. Raises BackendRefused for an App in force that this one does not serve."""
        if self._is_foreign(environment):
            record = await self._discovery.app(app, environment)
            if record is None or record.stopped_at is not None:
                return
            raise self._refusal(environment)
        await self._following.served.until(
            lambda served: served is not None and served.snapshot.serials.get((environment, app), 0) >= serial
        )

    async def end(self, revision: RevisionId) -> None:
        """As the protocol says. While routes lead to it, requests start new ones."""
        alive = [
            replica.key
            for replica in self._parts.pools.replicas.value
            if replica.key.pool.revision == revision and replica.state in ALIVE
        ]
        await asyncio.gather(*(self._parts.engine.kill(key) for key in alive))

    async def direct_urls(self, hosts: tuple[str, ...]) -> Mapping[str, str]:
        """As the protocol says."""
        served = self._following.served.value
        found = {host: served.endpoints.get(host) for host in hosts} if served is not None else {}
        return {host: endpoint.direct_url for host, endpoint in found.items() if endpoint and endpoint.direct_url}

    async def close(self) -> None:
        """What is in a record by now is served soon: it stays."""
        records: tuple[AppRecord, ...] | None = ()
        if self._revisions.held_by(self):
            try:
                records = await self._discovery.apps()
            except BackendError:
                records = None
        self._revisions.let_go(self, records=records)


class _Revision(Model):
    revision: Revision


class _Id(Model):
    revision: RevisionId


class _Warm(Model):
    revision: Revision
    parameters: str
    count: int = Field(ge=0, le=KEPT)


class _Follow(Model):
    earlier: RevisionId
    successor: RevisionId


class _Served(Model):
    app: str
    environment: str
    serial: int


class _Hosts(Model):
    hosts: tuple[str, ...]


def handle_stage(control: ControlServer, make: Callable[[], LocalStage]) -> None:
    """Its methods as calls `stage.<method>`, each connection with a stage of its own."""

    def stage(call: Call) -> LocalStage:
        found: LocalStage = call.client.own("stage", make)
        return found

    async def warm_counts(call: Call) -> Any:
        return await stage(call).warm_counts(_Id.model_validate(call.arguments).revision)

    async def apart(call: Call) -> Any:
        return await stage(call).apart(_Revision.model_validate(call.arguments).revision)

    async def prepare(call: Call) -> None:
        await stage(call).prepare(_Revision.model_validate(call.arguments).revision)

    async def warm(call: Call) -> None:
        given = _Warm.model_validate(call.arguments)
        await stage(call).warm(given.revision, given.parameters, given.count)

    async def follow(call: Call) -> None:
        given = _Follow.model_validate(call.arguments)
        await stage(call).follow(given.earlier, given.successor)

    async def served(call: Call) -> None:
        given = _Served.model_validate(call.arguments)
        await stage(call).served(given.app, given.environment, given.serial)

    async def end(call: Call) -> None:
        await stage(call).end(_Id.model_validate(call.arguments).revision)

    async def direct_urls(call: Call) -> Any:
        return await stage(call).direct_urls(_Hosts.model_validate(call.arguments).hosts)

    for handler in (warm_counts, apart, prepare, warm, follow, served, end, direct_urls):
        control.handle(f"stage.{handler.__name__}", handler)
