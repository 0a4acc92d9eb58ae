"""A Consul to test on: the fake one, or a real agent where `consul` is on PATH.

async with consul_for_test("fake") as consul:
    api = consul.api()
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.discovery import ConsulDiscovery
from modalnomad.hashicorp.http import HttpClient, Server
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.manifest import Endpoint, Function, Source
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import Route, RouteSnapshot
from modalnomad.ports.discovery import Discovery, PublishApp
from tests.support.engines import IMAGE, PATIENCE
from tests.support.fakes.consul import FakeConsul
from tests.support.ports import held_port

CONSULS = ("fake consul", "real consul")
"""Parameters for tests; the real one skips with its reason where there is none."""
PREFIX = "modalnomad"


@dataclass
class Consul:
    """One to talk to. What is opened here is closed with it."""

    address: str
    ttl_min: float
    """Seconds: the least TTL of a session."""
    own: FakeConsul | None = None
    """None: a real one."""
    apis: list[ConsulApi] = field(default_factory=list)

    @property
    def fake(self) -> FakeConsul:
        """Its server, to see through and to disturb."""
        assert self.own is not None
        return self.own

    def api(self, token: str = "") -> ConsulApi:
        """A client of its own."""
        headers = {"X-Consul-Token": token} if token else {}
        name = "CONSUL_HTTP_ADDR (consul.address)"
        server = Server("Consul", self.address, name, lambda: headers, token_setting="the token")
        self.apis.append(ConsulApi(HttpClient(server)))
        return self.apis[-1]

    def discovery(self, *, cache: Path | None = None, reconcile: float = 60.0, token: str = "") -> ConsulDiscovery:
        """As a process of its own would have it."""
        return ConsulDiscovery(self.api(token), prefix=PREFIX, cache=cache, reconcile=reconcile, least_ttl=self.ttl_min)

    async def close(self) -> None:
        """Every client."""
        for api in self.apis:
            await api.close()


@asynccontextmanager
async def fake_consul(*, acl: bool = False, ttl_min: float = 10.0) -> AsyncIterator[Consul]:
    """Ours, and clients of it."""
    async with FakeConsul(acl=acl, ttl_min=ttl_min) as fake:
        consul = Consul(fake.address, ttl_min, fake)
        try:
            yield consul
        finally:
            await consul.close()


@asynccontextmanager
async def consul_for_test(kind: str) -> AsyncIterator[Consul]:
    """One of CONSULS, with nothing in it."""
    if kind == CONSULS[0]:
        async with fake_consul() as consul:
            yield consul
    else:
        async with _real() as consul:
            yield consul


@asynccontextmanager
async def _real() -> AsyncIterator[Consul]:
    """A development agent with ports of its own, ended with the test."""
    program = shutil.which("consul")
    if program is None:
        pytest.skip("no consul on PATH")
    with tempfile.TemporaryDirectory(prefix="mc-") as home, ExitStack() as held:
        ports = {name: held.enter_context(held_port()) for name in ("http", "serf-lan", "serf-wan", "server")}
        options = [f"-{name}-port={port}" for name, port in ports.items()]
        agent = await asyncio.create_subprocess_exec(
            *(program, "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-dns-port=-1", "-grpc-port=-1"),
            *("-grpc-tls-port=-1", *options),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": home},
        )
        consul = Consul(f"http://127.0.0.1:{ports['http']}", 10.0)
        try:
            await _until_it_leads(consul.address)
            yield consul
        finally:
            await consul.close()
            agent.terminate()
            await agent.wait()


async def _until_it_leads(address: str) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"{address}/v1/status/leader") as answer:
                    if answer.ok and await answer.json():
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def app_record(app: str, version: int = 1, *, environment: str = "main", note: str = "") -> AppRecord:
    """An App with one endpoint, at `<app>.localhost`; its serial is the version."""
    endpoint = Endpoint(name="f", kind="asgi_app")
    revision = Revision.make(
        app=app,
        environment=environment,
        function=Function(tag="f", endpoints=(endpoint,), timeout=version),
        source=Source(mode="script", entry="a.py", root="/r", module="a"),
        bundle=IMAGE,
        image=BuiltImage(digest=IMAGE, python="3.11"),
    )
    route = Route(
        hosts=(f"{app}.localhost",), environment=environment, app=app, endpoint=endpoint, revision=revision.id
    )
    made = AppVersion(number=version, routes=(route,), revisions=(revision,), deployed_at=version, note=note)
    return AppRecord(app=app, environment=environment, serial=version, versions=(made,))


async def publish(discovery: Discovery, *apps: str, version: int = 1) -> None:
    """One version of each."""
    for app in apps:
        await discovery.publish(PublishApp(app_record(app, version), version - 1))


class Watcher:
    """Follows a discovery in the background."""

    def __init__(self) -> None:
        self.seen: Cell[RouteSnapshot | None] = Cell(None)
        self.all: list[list[str]] = []
        """The Apps of each snapshot."""

    @property
    def apps(self) -> list[str]:
        """Those that are served now."""
        return served(self.seen.value)

    async def until(self, *apps: str, limit: float = PATIENCE) -> RouteSnapshot:
        """The first snapshot with just these Apps."""
        async with asyncio.timeout(limit):
            found = await self.seen.until(lambda snapshot: snapshot is not None and served(snapshot) == sorted(apps))
        assert found is not None
        return found

    async def follow(self, discovery: Discovery) -> None:
        """Until cancelled."""
        async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
            async for snapshot in watch:
                self.all.append(served(snapshot))
                self.seen.set(snapshot)


def served(snapshot: RouteSnapshot | None) -> list[str]:
    """The Apps of a snapshot."""
    return sorted(route.app for route in snapshot.routes) if snapshot else []


@asynccontextmanager
async def watching(discovery: Discovery) -> AsyncIterator[Watcher]:
    """Within the block."""
    watcher = Watcher()
    async with Tasks("watching") as tasks:
        tasks.spawn(watcher.follow(discovery), "watch")
        yield watcher


async def until(wanted: Callable[[], object], limit: float = PATIENCE) -> None:
    """Look every few milliseconds whether it is so."""
    async with asyncio.timeout(limit):
        while not wanted():  # noqa: ASYNC110 - many different things are looked at
            await asyncio.sleep(0.005)
