"""A deployed App in memory, and a platform that remembers what a deploy asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

from modalnomad.deploy.stage import Stage
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.errors import BackendConflict, ModalNomadError, Problem
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Endpoint, Function, Source
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import Route, RouteSnapshot, Token
from modalnomad.ports.discovery import Change, PublishApp

SOURCE = Source(mode="script", entry="shop.py", root="/here", module="shop")


def revision(tag: str = "f", bundle: str = "1", **fields: Any) -> Revision:
    """Of the App `shop`; another `bundle` is another revision."""
    endpoints = fields.pop("endpoints", (Endpoint(name=tag, kind="asgi_app", where="shop.py:3"),))
    return Revision.make(
        app="shop",
        environment="main",
        function=Function(tag=tag, where="shop.py:2", endpoints=endpoints, **fields),
        source=SOURCE,
        bundle=Digest(bundle.rjust(64, "0")),
        image=BuiltImage(digest=Digest("a" * 64), python="3.11"),
    )


def version(number: int, *revisions: Revision, app: str = "shop", **fields: Any) -> AppVersion:
    """Each endpoint at `<app>-<endpoint>.localhost`."""
    routes = tuple(
        Route(
            hosts=(f"{app}-{endpoint.name.lower()}.localhost",),
            environment="main",
            app=app,
            endpoint=endpoint,
            revision=one.id,
        )
        for one in revisions
        for endpoint in one.function.endpoints
    )
    return AppVersion(number=number, routes=routes, revisions=revisions, **fields)


def record(*versions: AppVersion, serial: int = 1, app: str = "shop", **fields: Any) -> AppRecord:
    """With these versions, the last of them served."""
    return AppRecord(app=app, environment="main", serial=serial, versions=versions, **fields)


class FakeDiscovery:
    """One App's record."""

    def __init__(self, present: AppRecord | None, done: list[str]) -> None:
        self.present = present
        self.failure: ModalNomadError | None = None
        self.held = False
        self.writing = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._done = done

    async def publish(self, change: Change) -> None:
        assert isinstance(change, PublishApp)
        self.writing.set()
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        assert change.expected == (self.present.serial if self.present else 0)
        self._done.append("publish")
        self.present = change.record

    async def app(self, name: str, environment: str) -> AppRecord | None:
        present = self.present
        return present if present and (present.app, present.environment) == (name, environment) else None

    async def apps(self, environment: str | None = None) -> tuple[AppRecord, ...]:
        return (self.present,) if self.present else ()

    async def problems(self) -> tuple[Problem, ...]:
        return ()

    async def tokens(self, environment: str) -> tuple[Token, ...]:
        return ()

    async def watch(self) -> AsyncIterator[RouteSnapshot]:
        yield RouteSnapshot()

    @asynccontextmanager
    async def lock(self, name: str, *, lifetime: float) -> AsyncIterator[None]:
        if self.held:
            raise BackendConflict(f"the lock {name!r} is held by process 7 since noon", "wait")
        self.held = True
        try:
            yield
        finally:
            self.held = False


class FakeStage(Stage):
    """`fail[step]` is raised there; at `hold` it stands still until cancelled."""

    def __init__(self, done: list[str], warm: Mapping[RevisionId, Mapping[str, int]] | None = None) -> None:
        self.done = done
        self.counts = dict(warm or {})
        self.fail: dict[str, ModalNomadError] = {}
        self.hold = ""
        self.reached = asyncio.Event()
        self.apart_tags: set[str] = set()

    async def _step(self, name: str, words: str) -> None:
        await asyncio.sleep(0)
        if name == self.hold:
            self.reached.set()
            await asyncio.Event().wait()
        if name in self.fail:
            raise self.fail[name]
        self.done.append(f"{name} {words}".strip())

    async def warm_counts(self, revision: RevisionId) -> Mapping[str, int]:
        return self.counts.get(revision, {})

    async def apart(self, revision: Revision) -> bool:
        return revision.function.tag in self.apart_tags

    async def prepare(self, revision: Revision) -> None:
        await self._step("prepare", revision.function.tag)

    async def renew(self, revisions: Collection[Revision]) -> tuple[str, ...]:
        tags = tuple(revision.function.tag for revision in revisions)
        await self._step("renew", " ".join(tags))
        return tags

    async def warm(self, revision: Revision, parameters: str, count: int) -> None:
        await self._step("warm", f"{revision.function.tag} {parameters}{count}")

    async def follow(self, earlier: RevisionId, successor: RevisionId) -> None:
        await self._step("follow", "")

    async def served(self, app: str, environment: str, serial: int) -> None:
        await self._step("served", str(serial))

    async def end(self, revision: RevisionId) -> None:
        await self._step("end", "")

    async def direct_urls(self, hosts: tuple[str, ...]) -> Mapping[str, str]:
        return dict.fromkeys(hosts, "http://127.0.0.1:1")
