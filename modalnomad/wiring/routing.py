"""The parts of `router`: one of any number of routers in front of a cluster."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from modalnomad import __version__
from modalnomad.hashicorp.artifact_server import ArtifactServer
from modalnomad.hashicorp.consul.leader import Leader
from modalnomad.hashicorp.consul.login import LoginRenewal
from modalnomad.hashicorp.consul.registrations import watch_registrations
from modalnomad.hashicorp.consul.routers import RouterInfo, RouterPresence
from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.hashicorp.nomad.namespaces import tell_missing
from modalnomad.hashicorp.vault.key_watch import KeyWatch
from modalnomad.hashicorp.vault.platform_key import PlatformKeys
from modalnomad.hashicorp.vault.renewal import TokenRenewal
from modalnomad.hashicorp.vault.rotation import Rotation
from modalnomad.kit.tasks import Tasks
from modalnomad.router.admin import Admin
from modalnomad.router.probe import Prober
from modalnomad.router.server import RouterServer
from modalnomad.settings import UP_ADMIN_PORT, UP_PORT, Settings
from modalnomad.wiring.cluster import KEY_KEPT, Cluster, open_cluster
from modalnomad.wiring.cluster_deploy import registers_nothing
from modalnomad.wiring.cluster_schedules import ClusterSchedules, led_scheduler
from modalnomad.wiring.cluster_secrets import SecretVersions
from modalnomad.wiring.death import Death
from modalnomad.wiring.lasting import lasting
from modalnomad.wiring.parts import address, admin_of
from modalnomad.wiring.shared import SharedDiscovery
from modalnomad.wiring.tls import tls_context

KEY_LOOK: Final = 30.0
"""Seconds between two looks at the platform key where secrets are not looked at (vault.rotation = 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterParts:
    """A router, running."""

    settings: Settings
    cluster: Cluster
    discovery: SharedDiscovery
    engine: NomadEngine
    router: RouterServer
    artifacts: ArtifactServer
    admin: Admin | None
    leader: Leader
    rotation: Rotation | None
    """None: replicas keep the values they were started with."""
    keys: KeyWatch
    presence: RouterPresence
    death: Death
    name: str
    started_at: float
    """Unix time."""

    def url(self, host: str) -> str:
        """Public address of a host name."""
        return address(host, self.router.port, tls=self.settings.router.tls_cert is not None)


class GivenUp(Exception):
    """It was stopped before it knew what to serve."""


@asynccontextmanager
async def open_router(
    settings: Settings,
    environment: str | None = None,
    race: Callable[[Coroutine[Any, Any, None]], Awaitable[bool]] | None = None,
) -> AsyncIterator[RouterParts]:
    """Running. `race`: waits for the first table, which may take as long as Consul is away; False: it was given up
    meanwhile, which raises GivenUp. `environment`: the one that is served; None: all of them. Leaving it ends what runs
    here and leaves replicas to the other routers; call `router.drain` before for an orderly end. Raises BackendError: a
    port taken, no platform key, no records and none kept."""
    settings = with_ports(settings)
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(open_cluster(settings))
        death = Death("router")
        stack.callback(death.close)
        login = _login(cluster)
        if login is not None:
            stack.push_async_callback(login.close)
        tasks = await stack.enter_async_context(Tasks("routing", death.of))

        def keep(run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
            tasks.guard(lasting(run, name), name)

        if login is not None:
            keep(login.run, "login to Consul")
        parts = await _build(cluster, environment, death)
        await parts.artifacts.start()
        stack.push_async_callback(parts.artifacts.close)
        tasks.guard(parts.discovery.run(), "watch")
        keep(parts.leader.run, "leader")
        tasks.spawn(tell_missing(cluster.nomad, environment), "namespaces")
        await parts.engine.open()
        stack.push_async_callback(parts.engine.close)
        if parts.admin is not None:
            await parts.admin.start()
            stack.push_async_callback(parts.admin.close)
        if race is None:
            await parts.router.start()
        elif not await race(parts.router.start()):
            raise GivenUp
        stack.push_async_callback(parts.router.stop, wait=False)
        tasks.spawn(death.watch("router", parts.router.died), "router")
        schedules = ClusterSchedules(cluster.consul, settings.consul.prefix)
        scheduler = led_scheduler(parts.leader, parts.discovery, parts.router.caller, schedules)
        keep(lambda: parts.leader.while_held(scheduler.run), "schedules")
        if parts.rotation is not None:
            rotate = parts.rotation.run
            keep(lambda: parts.leader.while_held(rotate), "rotation")
        keep(parts.keys.run, "platform key")
        keep(lambda: _tell_presence(parts), "presence")
        keep(TokenRenewal(cluster.vault).run, "token of Vault")
        stack.push_async_callback(parts.presence.close)
        yield parts


async def _build(cluster: Cluster, environment: str | None, death: Death) -> RouterParts:
    settings = cluster.settings
    tls = tls_context(settings.router)
    keys = await cluster.platform_keys(make=True)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    versions = SecretVersions(cluster.secrets)
    discovery = SharedDiscovery(cluster.discovery, versions.take, environment)
    engine = NomadEngine(
        api=cluster.nomad,
        rendering=registers_nothing,
        version_of=cluster.next_version,
        registrations=lambda: watch_registrations(cluster.consul),
        secret_versions=versions.text,
        environment_of=versions.environment,
        router=name,
        on_death=death.of,
    )
    rotation = None
    if settings.vault.rotation:
        rotation = Rotation(
            running=engine.started_with,
            current=versions.current,
            others=engine.started_otherwise,
            tell=engine.replace,
            every=settings.vault.rotation,
        )
    leader = Leader(cluster.consul, f"{settings.consul.prefix}/locks/drains")
    router = RouterServer(
        engine=engine,
        discovery=discovery,
        settings=settings.router,
        scaling=settings.scaling,
        platform_key=keys.key,
        tls=tls,
        may_drain=lambda: leader.held,
        stale=lambda: _stale(cluster, engine),
    )
    discovery.on_failure = lambda: router.counters.failed("routes")
    return RouterParts(
        settings=settings,
        cluster=cluster,
        discovery=discovery,
        engine=engine,
        router=router,
        artifacts=ArtifactServer(cluster.artifacts, settings.artifacts.host, settings.artifacts.port),
        admin=admin_of(router, settings.router),
        leader=leader,
        rotation=rotation,
        keys=_watch_keys(cluster, keys, router.activator.prober),
        presence=RouterPresence(cluster.consul, settings.consul.prefix, name),
        death=death,
        name=name,
        started_at=time.time(),
    )


def _login(cluster: Cluster) -> LoginRenewal | None:
    consul = cluster.settings.consul
    if consul.login_file is None:
        return None
    return LoginRenewal(cluster.consul.http, consul.login_file, consul.auth_method)


def _watch_keys(cluster: Cluster, keys: PlatformKeys, prober: Prober) -> KeyWatch:
    prober.know(keys.all)
    every = cluster.settings.vault.rotation or KEY_LOOK
    watch = KeyWatch(cluster.vault, cluster.home / KEY_KEPT, keys, lambda found: prober.know(found.all), every=every)
    prober.on_unknown = watch.ask
    return watch


def _stale(cluster: Cluster, engine: NomadEngine) -> Mapping[str, float]:
    found = {"consul": cluster.discovery.stale_since, "nomad": engine.stale_since}
    return {name: since for name, since in found.items() if since is not None}


async def _tell_presence(parts: RouterParts) -> None:
    """Tell everybody what is served here, after each change. Until cancelled."""
    async for index in parts.router.feed.routes_index.watch():
        latest = parts.discovery.latest
        if latest.index > index:
            continue  # the router acts on it in a moment
        await parts.presence.tell(
            RouterInfo(
                name=parts.name,
                port=parts.router.port,
                tls=parts.settings.router.tls_cert is not None,
                environment=parts.discovery.environment or "",
                serials={f"{environment}/{app}": serial for (environment, app), serial in latest.serials.items()},
                version=__version__,
                started_at=parts.started_at,
            )
        )


def with_ports(settings: Settings) -> Settings:
    """Those that clients and monitors know: the usual ones unless others are set."""
    update = {}
    if settings.router.port is None:
        update["port"] = UP_PORT
    if settings.router.admin_port is None:
        update["admin_port"] = UP_ADMIN_PORT
    return settings.model_copy(update={"router": settings.router.model_copy(update=update)}) if update else settings
