"""The replicas of a running `up`, one by one: listed, and stopped by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from modalnomad.deploy.warming import ALIVE
from modalnomad.kit.clock import monotonic
from modalnomad.model.errors import NotFound, UserError
from modalnomad.model.replica import Replica
from modalnomad.model.revision import Revision
from modalnomad.router.dismissal import dismiss
from modalnomad.wiring.parts import Parts
from modalnomad.wiring.revisions import Revisions

PREFIX = "ct-"


@dataclass(frozen=True, slots=True)
class Container:
    """One replica, for people."""

    id: str
    """`ct-` and ten hex digits; no two that ever lived in a home share it."""
    environment: str
    app: str
    function: str
    parameters: str
    """Of the class, as JSON; empty: none."""
    replica: str
    """`<number>.<epoch>`, as its log lines say."""
    revision: str
    state: str
    requests: int | None
    """That run on it; None: not known here."""
    started_at: float
    """Unix time."""
    reason: str
    """Why it was started."""
    waits: str = ""
    """Why it has no place yet; empty: it has one."""


class Containers:
    """Those that live."""

    def __init__(self, parts: Parts, revisions: Revisions) -> None:
        self._parts = parts
        self._revisions = revisions

    def all(self) -> list[Container]:
        """By environment, App, function and start."""
        running = {place.key: place.running for pool in self._parts.router.activator.pools() for place in pool.places}
        return in_order(
            container_of(replica, revision, requests=running.get(replica.key, 0))
            for replica, revision in self._alive().values()
        )

    def as_json(self) -> list[Mapping[str, Any]]:
        """The same."""
        return [asdict(container) for container in self.all()]

    async def stop(self, id: str, *, now: bool, environment: str | None = None) -> str:
        """End one: it takes no more requests and goes after those it has, or (`now`) is killed. Whether another one
        comes is decided by demand. `id`: a beginning is enough. `environment`: it is looked for there only. Returns
        the whole id. Raises NotFound, UserError."""
        alive = {name: found for name, found in self._alive().items() if environment in {None, found[1].environment}}
        name = pick(id, alive)
        replica, _ = alive[name]
        # Also before it is killed: who waits for it gets another one, and is not told that a start failed.
        dismiss(self._parts.router.activator, replica.key, monotonic())
        if now:
            await self._parts.engine.kill(replica.key)
        return name

    def _alive(self) -> dict[str, tuple[Replica, Revision]]:
        return {
            name_of(replica): (replica, revision)
            for replica in self._parts.router.replicas.value
            if replica.state in ALIVE and (revision := self._revisions.find(replica.key.pool.revision)) is not None
        }


def container_of(replica: Replica, revision: Revision, *, requests: int | None) -> Container:
    """As it is shown."""
    return Container(
        id=name_of(replica),
        environment=revision.environment,
        app=revision.app,
        function=revision.function.tag,
        parameters=replica.key.pool.parameters,
        replica=replica.key.name,
        revision=revision.id,
        state=replica.state.value,
        requests=requests,
        started_at=replica.started_at,
        reason=replica.reason,
    )


def in_order(containers: Iterable[Container]) -> list[Container]:
    """By environment, App, function and start."""
    return sorted(containers, key=lambda one: (one.environment, one.app, one.function, one.started_at))


def pick(id: str, names: Collection[str]) -> str:
    """The one that begins so. Raises NotFound, UserError."""
    wanted = id if id.startswith(PREFIX) else PREFIX + id
    found = [name for name in names if name.startswith(wanted)]
    if not found or wanted == PREFIX:
        raise NotFound(f"no container {id!r} runs", "see them with: modalnomad container list")
    if len(found) > 1:
        raise UserError(f"{id!r} could be {' or '.join(sorted(found))}", "give more of it")
    return found[0]


def name_of(replica: Replica) -> str:
    """Its id."""
    return PREFIX + hashlib.sha256(f"{replica.key} {replica.started_at}".encode()).hexdigest()[:10]
