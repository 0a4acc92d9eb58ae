"""Which revisions a running platform knows, and for how long.

in a record that is served, or held by a deploy ─▶ known: prepared in the background, or at its first start
neither any more ─▶ its replicas drain ─▶ forgotten
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from modalnomad.deploy.hosts import Naming, name_function
from modalnomad.deploy.succession import OrderedEngine
from modalnomad.deploy.warming import is_alive
from modalnomad.kit.tasks import Tasks
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import ModalNomadError
from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from modalnomad.model.routes import Route, RouteSnapshot
from modalnomad.settings import RouterSettings
from modalnomad.wiring.parts import Parts, RouterPools

logger = logging.getLogger("modalnomad.up")

AppName = tuple[str, str]
"""Environment, App."""

AT_ONCE = 2
"""Revisions prepared in the background at the same time."""


class Revisions:
    """`take` each snapshot, `hold` what a deploy stages. `attach` comes first; `close` ends the background work."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self.known: dict[RevisionId, Revision] = {}
        """All that may have replicas."""
        self._served: frozenset[RevisionId] = frozenset()
        self._routes: dict[RevisionId, list[Route]] = {}
        self._holders: dict[RevisionId, set[object]] = {}
        self._serials: Mapping[AppName, int] = {}
        """Of the records that the last snapshot was made of."""
        self._awaited: dict[RevisionId, tuple[AppName, int]] = {}
        """In a record that is newer than the last snapshot, with its serial → until there is one as new."""
        self._forgetting: set[RevisionId] = set()
        self._tasks = Tasks("revisions")
        self._closed = False
        self._few = asyncio.Semaphore(AT_ONCE)
        self._engine: OrderedEngine | None = None
        self._pools: RouterPools | None = None

    def attach(self, parts: Parts) -> None:
        """Where they are prepared, drained and forgotten."""
        self._engine, self._pools = parts.engine, parts.pools

    def find(self, revision: RevisionId) -> Revision | None:
        """One that is known."""
        return self.known.get(revision)

    def hosts(self, revision: Revision) -> Mapping[str, str]:
        """Endpoint name → the host that is shown for it: the record's, else as a deploy would name it."""
        if routes := self._routes.get(revision.id):
            return {route.endpoint.name: route.hosts[0] for route in routes}
        naming = Naming(self._settings.domain, self._settings.workspace, revision.environment)
        named, _ = name_function(revision.function, revision.app, naming, ephemeral=False)
        return {entry.endpoint.name: entry.hosts[0] for entry in named}

    def take(self, snapshot: RouteSnapshot) -> None:
        """A new snapshot, before the router acts on it."""
        assert self._engine is not None, "attach comes first"
        before, self._served = self._served, frozenset(snapshot.revisions)
        self._serials = snapshot.serials
        # It may have been read before the record was written.
        self._awaited = {
            id: (app, serial) for id, (app, serial) in self._awaited.items() if snapshot.serials.get(app, 0) < serial
        }
        self._routes = {}
        for route in snapshot.routes:
            self._routes.setdefault(route.revision, []).append(route)
        for revision in snapshot.revisions.values():
            if revision.id not in self.known:
                self.known[revision.id] = revision
                self._spawn(self._prepare(revision), f"prepare {revision.id}")
        for id in snapshot.revisions.keys() - before:
            self.order(self.known[id])

    def order(self, revision: Revision) -> None:
        """Where it cannot live beside others of its Function: its starts wait for those that are served no more, and
        still answer their last requests. To be called once it is prepared, or served."""
        assert self._engine is not None
        if self._engine.apart(revision):
            stay = {revision.id, *self._served}
            for other in self.known.values():
                if other.id not in stay and _name(other) == _name(revision):
                    self._engine.after(revision.id, other.id)

    def routed(self) -> None:
        """The router acts on the last snapshot: what it leads to no more can go."""
        self._forget_unwanted()

    async def _prepare(self, revision: Revision) -> None:
        assert self._engine is not None
        async with self._few:
            if not self._wanted(revision.id):
                return
            try:
                await self._engine.prepare(revision)
            except ModalNomadError as error:
                # Tried again when a request wants it; whoever sends that is told.
                logger.warning("%s/%s cannot be started now: %s", revision.app, revision.function.tag, error.message)

    # --- what deploys stage ----------------------------------------------------------------------------------

    def hold(self, revision: Revision, holder: object) -> None:
        """Known as long as `holder` does not let go."""
        self.known.setdefault(revision.id, revision)
        self._holders.setdefault(revision.id, set()).add(holder)

    def held_by(self, holder: object) -> frozenset[RevisionId]:
        """What it holds."""
        return frozenset(revision for revision, holders in self._holders.items() if holder in holders)

    def let_go(self, holder: object, *, records: Iterable[AppRecord] | None = ()) -> None:
        """What nobody else holds and no record serves is drained and forgotten. `records`: as they are now, for what is
        in one that was not followed yet; None: they cannot be read, so the next snapshot decides."""
        held = self.held_by(holder)
        if records is None:
            self._awaited.update((id, (("", ""), 0)) for id in held - self._awaited.keys())
        for record in records or ():
            name = record.environment, record.app
            if record.serial > self._serials.get(name, 0):
                self._awaited.update((one.id, (name, record.serial)) for one in record.revisions if one.id in held)
        for revision, holders in list(self._holders.items()):
            holders.discard(holder)
            if not holders:
                del self._holders[revision]
        self._forget_unwanted()

    # --- the end of one --------------------------------------------------------------------------------------

    def _wanted(self, revision: RevisionId) -> bool:
        """Also while the router has not acted on a snapshot without it: requests wake it until then."""
        assert self._pools is not None
        by_record = revision in self._served or revision in self._awaited
        return by_record or revision in self._holders or revision in self._pools.led_to

    def _forget_unwanted(self) -> None:
        assert self._pools is not None
        for revision in self.known:
            if self._wanted(revision):
                continue
            if revision in self._forgetting:
                # It may have been wanted, and warmed, since it was told to drain.
                self._spawn(self._pools.retire(revision), f"drain {revision}")
            else:
                self._forgetting.add(revision)
                self._spawn(self._forget(revision), f"forget {revision}")

    async def _forget(self, revision: RevisionId) -> None:
        """Unless it is wanted again before its last replica is gone."""
        assert self._engine is not None
        assert self._pools is not None
        try:
            if self._wanted(revision):
                return
            await self._pools.retire(revision)
            await self._pools.replicas.until(lambda replicas: not is_alive(replicas, revision))
            if not self._wanted(revision):
                del self.known[revision]
                await self._engine.retire(revision)
        finally:
            self._forgetting.discard(revision)
        # Let go of again while it was being looked at.
        if revision in self.known and not self._wanted(revision):
            self._forget_unwanted()

    async def close(self) -> None:
        """Prepare and forget no more. Twice does nothing more."""
        self._closed = True
        await self._tasks.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._closed:  # records are followed a little longer: the next platform sees to what comes now
            work.close()
        else:
            self._tasks.spawn(work, name)


def _name(revision: Revision) -> tuple[str, str, str]:
    return revision.environment, revision.app, revision.function.tag
