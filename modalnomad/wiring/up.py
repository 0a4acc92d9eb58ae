"""The parts of `up`: one process per home that serves what is deployed there and follows deploys."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalnomad_sdk.store import ImageStore

from modalnomad import __version__
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.logfiles import LogKeeper
from modalnomad.embedded.schedules import ScheduleRecords
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.embedded.store import named_lock
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendConflict, BackendRefused
from modalnomad.model.manifest import Model
from modalnomad.model.revision import Revision
from modalnomad.ports.artifacts import Artifacts
from modalnomad.ports.engine import Engine
from modalnomad.router.server import RouterServer
from modalnomad.settings import UP_ADMIN_PORT, UP_PORT, Settings
from modalnomad.wiring.containers import Containers
from modalnomad.wiring.control_server import Call, ControlServer, Handler
from modalnomad.wiring.death import Death
from modalnomad.wiring.doors import Doors
from modalnomad.wiring.ending import Ending
from modalnomad.wiring.following import Following
from modalnomad.wiring.home import home_of
from modalnomad.wiring.lasting import lasting
from modalnomad.wiring.local_stage import LocalStage, handle_stage
from modalnomad.wiring.parts import Parts, RouterPools, build, running
from modalnomad.wiring.revisions import Revisions
from modalnomad.wiring.scheduler import Scheduler
from modalnomad.wiring.shared import SharedDiscovery


@dataclass(frozen=True, slots=True)
class Service:
    """Something that runs as long as `up` does; when it ends by itself, `up` ends too."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]
    """Until cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpParts:
    """A platform."""

    settings: Settings
    discovery: SharedDiscovery
    parts: Parts
    revisions: Revisions
    doors: Doors
    following: Following
    containers: Containers
    control: ControlServer
    scheduler: Scheduler
    death: Death
    started_at: float
    """Unix time."""

    @property
    def engine(self) -> Engine:
        """Runs replicas."""
        return self.parts.engine

    @property
    def router(self) -> RouterServer:
        """Serves requests."""
        return self.parts.router

    @property
    def pools(self) -> RouterPools:
        """What a deploy asks of the router."""
        return self.parts.pools

    @property
    def secrets(self) -> EmbeddedSecrets:
        """Of the home."""
        return self.parts.secrets

    @property
    def images(self) -> ImageStore:
        """Of the home."""
        return self.parts.images

    @property
    def artifacts(self) -> Artifacts:
        """Of the home."""
        return self.parts.artifacts

    def url(self, host: str) -> str:
        """Public address of a host name."""
        return self.parts.url(host)

    def ending(self) -> Ending:
        """The orderly end of everything that is served or staged."""
        return Ending(self.router, self.pools, self.revisions.known, self.settings)


def services(up: UpParts) -> tuple[Service, ...]:
    """All that runs beside the router, started in this order."""
    return (
        Service("follow", lambda: lasting(up.following.run, "follow")),
        Service("schedules", lambda: lasting(up.scheduler.run, "schedules")),
    )


def handlers(up: UpParts) -> Mapping[str, Handler]:
    """What other processes of this home may ask, beside the calls of a stage."""

    async def status(call: Call) -> Any:
        return describe(up)

    async def containers(call: Call) -> Any:
        return up.containers.as_json()

    async def stop_container(call: Call) -> Any:
        asked = StopContainer.model_validate(call.arguments)
        return await up.containers.stop(asked.id, now=asked.now, environment=asked.environment)

    return {"status": status, "containers": containers, "stop_container": stop_container}


@asynccontextmanager
async def open_up(settings: Settings, environment: str | None = None) -> AsyncIterator[UpParts]:
    """The parts of `up`, running. `environment`: the one that is served; None: all of them. Leaving it ends every
    replica at once; run `ending` before for an orderly end.

    Raises BackendConflict: another `up` serves this home; BackendError: port taken, home not writable.
    """
    settings = with_port(settings)
    async with AsyncExitStack() as stack:
        stack.enter_context(only_one(home_of(settings)))
        up = build_up(settings, environment)
        stack.callback(up.death.close)
        tasks = Tasks("up", up.death.of)
        records = await stack.enter_async_context(Tasks("records", up.death.of))
        records.guard(up.discovery.run(), "watch")
        # Outlives the engine: what replicas write last is kept too.
        keeper = LogKeeper(up.parts.engine, settings.home, settings.embedded)
        records.guard(keeper.run(), "logs")
        if up.parts.admin is not None:
            up.parts.admin.exposition.lost_lines = lambda: keeper.lost
        stack.push_async_callback(up.revisions.close)  # where the next line fails
        await stack.enter_async_context(_serving(up.parts, settings))
        stack.push_async_callback(up.revisions.close)
        await up.doors.load()
        for name, handler in handlers(up).items():
            up.control.handle(name, handler)
        await stack.enter_async_context(up.control)
        await stack.enter_async_context(tasks)
        tasks.spawn(up.death.watch("router", up.router.died), "router")
        for service in services(up):
            tasks.guard(service.run(), service.name)
        yield up


def build_up(settings: Settings, environment: str | None) -> UpParts:
    """Nothing runs yet. Raises UserError, BackendError."""
    revisions = Revisions(settings.router)
    discovery = SharedDiscovery(EmbeddedDiscovery(settings.home), revisions.take, environment)

    def web_urls(revision: Revision) -> Mapping[str, str]:
        return {name: parts.url(host) for name, host in revisions.hosts(revision).items()}

    parts = build(settings, discovery, web_urls=web_urls, known=revisions.find)
    revisions.attach(parts)
    discovery.on_failure = lambda: parts.router.counters.failed("routes")
    doors = Doors(parts.router, settings.home)
    following = Following(parts, discovery, revisions, doors)
    control = ControlServer(settings.home)
    handle_stage(control, lambda: LocalStage(parts, discovery, revisions, following))
    return UpParts(
        settings=settings,
        discovery=discovery,
        parts=parts,
        revisions=revisions,
        doors=doors,
        following=following,
        containers=Containers(parts, revisions),
        control=control,
        scheduler=Scheduler(discovery, parts.router.caller, ScheduleRecords(settings.home)),
        death=Death("up"),
        started_at=time.time(),
    )


class StopContainer(Model):
    """Arguments of `stop_container`."""

    id: str
    now: bool = False
    environment: str | None = None


def describe(up: UpParts) -> dict[str, Any]:
    """What `status` answers."""
    served = up.following.served.value
    endpoints = served.endpoints.values() if served is not None else ()
    router = up.settings.router
    return {
        "pid": os.getpid(),
        "version": __version__,
        "home": str(up.settings.home),
        "environment": up.discovery.environment,
        "started_at": up.started_at,
        "host": router.host,
        "port": up.router.port,
        "tls": router.tls_cert is not None,
        "admin_url": up.parts.admin.url if up.parts.admin is not None else None,
        "ready": served is not None,
        "endpoints": [
            {
                "environment": endpoint.environment,
                "app": endpoint.app,
                "name": endpoint.endpoint.name,
                "host": endpoint.host,
                "url": endpoint.url,
                "direct_url": endpoint.direct_url,
                "custom_urls": endpoint.custom_urls,
                "auth": endpoint.endpoint.requires_proxy_auth,
            }
            for endpoint in endpoints
        ],
    }


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
    """With the ports that `up` listens on when none were given."""
    router, wanted = settings.router, {"port": UP_PORT, "admin_port": UP_ADMIN_PORT}
    missing = {name: port for name, port in wanted.items() if getattr(router, name) is None}
    return settings.model_copy(update={"router": router.model_copy(update=missing)})


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """One `up` per home. Raises BackendConflict naming the other's process."""
    with ExitStack() as stack:
        try:
            stack.enter_context(named_lock(home / "locks" / "up.lock", "the lock of `up`"))
        except BackendConflict as error:
            holder = error.message.rpartition(" is held by ")[2]
            raise BackendConflict(
                f"modalnomad up already serves {home}: {holder}",
                "deploys reach that one by themselves; stop it first, or choose another home with MODALNOMAD_HOME",
            ) from None
        yield
