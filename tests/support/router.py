"""The router's data plane on real sockets, with a stub where it would start replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Endpoint, EndpointKind, Function, Parameter, Source
from modalnomad.model.replica import Address, PoolKey, ReplicaKey
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import Route, RouteSnapshot, Token
from modalnomad.router.app import Router
from modalnomad.router.auth import Auth
from modalnomad.router.limits import Limits
from modalnomad.router.listeners import Listeners
from modalnomad.router.replies import Reply
from modalnomad.router.table import Match, RouteTable
from modalnomad.router.upstream import Upstream
from modalnomad.settings import RouterSettings
from tests.support.raw import WAIT

TICKET = b"7" * 64


def route(
    *,
    host: str = "app.localhost",
    kind: EndpointKind = "asgi_app",
    timeout: float = 300.0,
    ephemeral: bool = False,
    auth: bool = False,
    parameters: tuple[Parameter, ...] = (),
) -> tuple[Route, Revision]:
    """One endpoint."""
    endpoint = Endpoint(name="f", kind=kind, requires_proxy_auth=auth)
    function = Function(tag="f", endpoints=(endpoint,), timeout=timeout, parameters=parameters)
    source = Source(mode="script", entry="app.py", root="", module="app")
    image = BuiltImage(digest=Digest("0" * 64), python="3.11")
    revision = Revision.make(
        app="app", environment="main", function=function, source=source, bundle=Digest("1" * 64), image=image
    )
    hosts = (host,)
    return Route(
        hosts=hosts, environment="main", app="app", endpoint=endpoint, revision=revision.id, ephemeral=ephemeral
    ), revision


@dataclass
class StubLease:
    """A place in a replica that the test named."""

    key: ReplicaKey
    address: Address
    match: Match
    ticket: bytes = TICKET
    events: list[str] = field(default_factory=list)

    def refused(self) -> None:
        """Noted."""
        self.events.append("refused")

    def gone(self, *, timed_out: bool = False, hung: bool = False) -> None:
        """Noted."""
        self.events.append("gone")


class StubActivator:
    """Leases `addresses` in order (the last one for ever), once `ready` is set; counts who waits and who is served."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.addresses = list(addresses)
        self.ready = asyncio.Event()
        self.ready.set()
        self.refusal: Reply | None = None
        self.waiting = 0
        self.running = 0
        self.released = 0
        self.leases: list[StubLease] = []
        self.avoided: list[frozenset[ReplicaKey]] = []

    @contextlib.asynccontextmanager
    async def lease(
        self,
        match: Match,
        key: PoolKey,
        avoid: frozenset[ReplicaKey] = frozenset(),
        *,
        until: float | None = None,
        request_id: bytes = b"",
    ) -> AsyncIterator[StubLease]:
        """See the class."""
        self.avoided.append(avoid)
        self.waiting += 1
        try:
            await self.ready.wait()
        finally:
            self.waiting -= 1
        if self.refusal is not None:
            raise self.refusal
        number = min(len(self.leases), len(self.addresses) - 1)
        lease = StubLease(ReplicaKey(key, number, 1), self.addresses[number], match)
        self.leases.append(lease)
        self.running += 1
        try:
            yield lease
        finally:
            self.running -= 1
            self.released += 1


@dataclass
class Served:
    """A running data plane."""

    port: int
    router: Router
    activator: StubActivator
    upstream: Upstream
    listeners: Listeners

    async def quiet(self) -> None:
        """Until no request runs or waits."""
        await until(
            lambda: self.router.gate.tasks.running == 0 and self.activator.running == self.activator.waiting == 0
        )


@contextlib.asynccontextmanager
async def served(
    *addresses: Address,
    routes: Sequence[tuple[Route, Revision]] = (),
    tokens: Sequence[Token] = (),
    settings: RouterSettings | None = None,
) -> AsyncIterator[Served]:
    """On a free port; on leaving, nothing may be left over: no task, no connection on either side."""
    settings = settings or RouterSettings()
    pairs = list(routes) or [route()]
    snapshot = RouteSnapshot(tuple(pair[0] for pair in pairs), {pair[1].id: pair[1] for pair in pairs}, tuple(tokens))
    activator = StubActivator(addresses)
    upstream = Upstream(settings)
    router = Router(
        table=RouteTable.build(snapshot),
        auth=Auth(tokens),
        limits=Limits(settings.rate, settings.rate_burst, rates=settings.rates),
        activator=activator,
        upstream=upstream,
        settings=settings,
    )
    listeners = Listeners(router.gate)
    sweeper = asyncio.get_running_loop().create_task(router.gate.sweep())
    port = await listeners.open("127.0.0.1", 0)
    try:
        yield Served(port, router, activator, upstream, listeners)
    finally:
        listeners.close_all()
        sweeper.cancel()
        await asyncio.wait([sweeper])
        async with asyncio.timeout(WAIT):
            await router.gate.close()
            await upstream.close()
    assert activator.waiting == activator.running == 0
    assert router.gate.guests == 0
    assert upstream.connections == (0, 0)


async def until(condition: object, seconds: float = WAIT) -> None:
    """Wait for a callable to be true."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
