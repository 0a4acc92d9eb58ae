"""The parts of `up`: one process per home that serves what is deployed there and follows deploys."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalnomad_sdk.store import ImageStore

from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.store import named_lock
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendConflict, BackendError, BackendRefused
from modalnomad.model.revision import Revision
from modalnomad.ports.artifacts import Artifacts
from modalnomad.ports.engine import Engine
from modalnomad.ports.secrets import Secrets
from modalnomad.router.server import RouterServer
from modalnomad.settings import UP_PORT, Settings
from modalnomad.wiring.doors import Doors
from modalnomad.wiring.ending import Ending
from modalnomad.wiring.following import Following
from modalnomad.wiring.home import home_of
from modalnomad.wiring.parts import Parts, RouterPools, build, running
from modalnomad.wiring.revisions import Revisions
from modalnomad.wiring.shared import SharedDiscovery


@dataclass(frozen=True, slots=True)
class Service:
    """Something that runs as long as `up` does; when it ends by itself, `up` ends too."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]
    """Until cancelled."""


@dataclass(slots=True)
class UpParts:
    """A running platform."""

    settings: Settings
    engine: Engine
    discovery: SharedDiscovery
    router: RouterServer
    pools: RouterPools
    secrets: Secrets
    images: ImageStore
    artifacts: Artifacts
    parts: Parts
    revisions: Revisions
    doors: Doors
    following: Following
    started_at: float
    """Unix time."""
    death: asyncio.Future[None]

    def url(self, host: str) -> str:
        """Public address of a host name."""
        return self.parts.url(host)

    def ending(self) -> Ending:
        """The orderly end of everything that is served or staged."""
        return Ending(self.router, self.pools, self.revisions.known, self.settings)

    async def died(self) -> None:
        """Raises BackendError when a part of the platform ended by itself; else never returns."""
        await asyncio.shield(self.death)


def services(up: UpParts) -> tuple[Service, ...]:
    """All that runs beside the router, started in this order."""
    return (Service("follow", up.following.run),)


@asynccontextmanager
async def open_up(settings: Settings) -> AsyncIterator[UpParts]:
    """The parts of `up`, running. Leaving it ends every replica at once; run `ending` before for an orderly end.

    Raises BackendConflict: another `up` serves this home; BackendError: port taken, home not writable.
    """
    settings = with_port(settings)
    with only_one(home_of(settings)):
        revisions = Revisions(settings.router)
        discovery = SharedDiscovery(EmbeddedDiscovery(settings.home), revisions.take)

        def web_urls(revision: Revision) -> Mapping[str, str]:
            return {name: parts.url(host) for name, host in revisions.hosts(revision).items()}

        parts = build(settings, discovery, web_urls=web_urls, known=revisions.find)
        revisions.attach(parts)
        death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks = Tasks("up", lambda name, error: _die(death, name, error))
        try:
            tasks.guard(discovery.run(), "records")
            async with _serving(parts, settings), tasks:
                doors = Doors(parts.router, settings.home)
                await doors.load()
                up = UpParts(
                    settings=settings,
                    engine=parts.engine,
                    discovery=discovery,
                    router=parts.router,
                    pools=parts.pools,
                    secrets=parts.secrets,
                    images=parts.images,
                    artifacts=parts.artifacts,
                    parts=parts,
                    revisions=revisions,
                    doors=doors,
                    following=Following(parts, discovery, revisions, doors),
                    started_at=time.time(),
                    death=death,
                )
                tasks.spawn(_watch_router(parts.router, death), "router")
                for service in services(up):
                    tasks.guard(service.run(), service.name)
                try:
                    yield up
                finally:
                    await revisions.close()
        finally:
            await tasks.close()
            death.cancel()


@asynccontextmanager
async def _serving(parts: Parts, settings: Settings) -> AsyncIterator[None]:
    opened = False
    try:
        async with running(parts):
            opened = True
            yield
    except BackendRefused as error:
        if opened or settings.router.port != UP_PORT:
            raise
        raise BackendRefused(
            error.message,
            "stop that program, or give another port, which changes the URLs: modalnomad up --port N, or "
            "MODALNOMAD_ROUTER__PORT",
        ) from error


def with_port(settings: Settings) -> Settings:
    """With the port that `up` listens on when none was given."""
    if settings.router.port is not None:
        return settings
    return settings.model_copy(update={"router": settings.router.model_copy(update={"port": UP_PORT})})


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """One `up` per home. Raises BackendConflict naming the other's process."""
    note = f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with ExitStack() as stack:
        try:
            stack.enter_context(named_lock(home / "locks" / "up.lock", "the lock of `up`", note))
        except BackendConflict as error:
            holder = error.message.rpartition(" is held by ")[2]
            raise BackendConflict(
                f"modalnomad up already serves {home}: {holder}",
                "deploys reach that one by themselves; stop it first, or choose another home with MODALNOMAD_HOME",
            ) from None
        yield


async def _watch_router(router: RouterServer, death: asyncio.Future[None]) -> None:
    try:
        await router.died()
    except Exception as error:
        _die(death, "router", error)


def _die(death: asyncio.Future[None], name: str, error: BaseException) -> None:
    if not death.done():
        death.set_exception(
            BackendError(f"up cannot go on: {name} ended: {error}", "run it with --verbose to see what happened")
        )
        death.exception()
