"""A Consul for tests: one server and its agent, over real HTTP, with indexes and blocking queries as Consul has them.

async with FakeConsul() as consul:
    api = ConsulApi(HttpClient(Server("Consul", consul.address, "…")))

What it lacks: several servers, Connect, prepared queries, DNS, namespaces; auth methods of other types than jwt.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from modalnomad.kit.tasks import Tasks
from tests.support.fakes import consul_kv as kv
from tests.support.fakes.consul_acl import Acl, Rights
from tests.support.fakes.consul_admin import Admin, add_acl_routes, secret_of
from tests.support.fakes.consul_agent import Agent, AgentRoutes
from tests.support.fakes.consul_login import add_login_routes
from tests.support.fakes.consul_state import Refused, Store
from tests.support.ports import held_port, stop_listening

DEFAULT_WAIT, LONGEST_WAIT = 300.0, 600.0
NODE = "fake-consul"
ENTERPRISE = (
    ("ns", "X-Consul-Namespace", "Namespaces"),
    ("partition", "X-Consul-Partition", "Partitions"),
)


@dataclass
class Fault:
    """What answers to paths that begin with `path` become, `times` times."""

    path: str
    times: float
    respond: Callable[[web.Request], Awaitable[web.StreamResponse]]
    method: str = ""
    after: bool = False
    """It is done all the same; only the answer is lost."""


class FakeConsul:
    """`acl`: requests need tokens; `management` has all rights, and is empty until `bootstrapped`. `ttl_min`: the least
    TTL of a session, seconds. `tls`: it is HTTPS."""

    def __init__(
        self,
        *,
        acl: bool = False,
        bootstrapped: bool = True,
        ttl_min: float = 10.0,
        kv_limit: int = kv.KV_LIMIT,
        version: str = "1.22.5",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.store = Store()
        self.acl = Acl(acl, bootstrapped=bootstrapped)
        self.ttl_min = ttl_min
        self.kv_limit = kv_limit
        self.version = version
        self.requests: list[str] = []
        """Method and path with query of each."""
        self.waiting = 0
        """Blocking queries that wait now."""
        self.port = 0
        self._faults: list[Fault] = []
        self._tasks = Tasks("consul")
        self.agent = Agent(self.store, self._tasks, NODE)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._held = ExitStack()

    @property
    def address(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def listens(self) -> bool:
        """Whether it takes connections: not while it is gone."""
        return self._listening is not None

    @property
    def management(self) -> str:
        """The token that may do everything."""
        return self.acl.management

    def token(self, rules: str, name: str = "") -> str:
        """A new one with these rules."""
        policy = self.acl.add_policy(name or f"policy-{len(self.acl.policies)}", rules)
        return str(self.acl.add_token([policy["ID"]])["SecretID"])

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._middleware], client_max_size=1 << 26)
        KvRoutes(self).add(app)
        AgentRoutes(self).add(app)
        admin = Admin(self.acl, app, self._rights)
        add_acl_routes(admin)
        add_login_routes(admin)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        self.port = self._held.enter_context(held_port())
        await self.come_back()
        self._tasks.spawn(self.store.expire(), "sessions")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.close()
        await self.agent.close()
        if self._listening is not None:
            await stop_listening(self._listening)
        assert self._runner is not None
        await self._runner.cleanup()
        self._held.close()

    # --- faults ----------------------------------------------------------------------------------------------

    async def go(self) -> None:
        """Hang up on everybody and refuse connections. What is kept stays; sessions go on expiring."""
        listening, self._listening = self._listening, None
        assert listening is not None
        assert self._runner is not None
        assert self._runner.server is not None
        await stop_listening(listening)
        await self._runner.server.shutdown(0.01)

    async def come_back(self) -> None:
        """Listen again where it listened before."""
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: _Lenient(server()), "127.0.0.1", self.port, reuse_address=True, ssl=self._tls
        )

    @asynccontextmanager
    async def gone(self) -> AsyncIterator[None]:
        """Not there within the block."""
        await self.go()
        try:
            yield
        finally:
            await self.come_back()

    def fail(
        self, times: float = 1, *, path: str = "/v1/", method: str = "", status: int = 500, text: str = "", **how: bool
    ) -> Fault:
        """The next answers to `path` are `status`. `after=True`: what was asked is done all the same."""
        told = text or ("No cluster leader" if status == 500 else "")

        async def respond(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, text=told)

        return self._add(Fault(path, times, respond, method, **how))

    def empty(self, times: float = 1, *, path: str = "/v1/", body: str = "[]", index: int | None = None) -> Fault:
        """The next answers are 200 with nothing in it, at the index asked for (else 1) or at `index`."""

        async def respond(request: web.Request) -> web.StreamResponse:
            told = index if index is not None else int(request.query.get("index", "1"))
            return _answer(200, body.encode(), told)

        return self._add(Fault(path, times, respond))

    def older(self, past: Store, times: float = 1, *, path: str = "/v1/kv/") -> Fault:
        """The next answers are what it knew in the `past` (see `snapshot`)."""

        async def respond(request: web.Request) -> web.StreamResponse:
            index, value = kv.get(past, request, self._rights(request))()
            return _answer(404 if value is None else 200, _body(value), index)

        return self._add(Fault(path, times, respond))

    def snapshot(self) -> Store:
        """What it knows now, for `older`."""
        store = self.store
        return Store(index=store.index, keys=dict(store.keys), graves=dict(store.graves), tables=dict(store.tables))

    @contextmanager
    def hanging(self, path: str = "/v1/") -> Iterator[None]:
        """Answers nothing within the block."""
        over = asyncio.Event()

        async def respond(request: web.Request) -> web.StreamResponse:
            await over.wait()
            return web.Response(status=500, text="too late")

        fault = self._add(Fault(path, float("inf"), respond))
        self.store.wake()
        try:
            yield
        finally:
            fault.times = 0
            over.set()

    def clear_faults(self) -> None:
        """It answers rightly again."""
        self._faults.clear()

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def _fault(self, request: web.Request) -> Fault | None:
        for fault in self._faults:
            if fault.times > 0 and request.path.startswith(fault.path) and fault.method in {"", request.method}:
                fault.times -= 1
                return fault
        return None

    # --- answering -------------------------------------------------------------------------------------------

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not self.listens:  # its connection was being made while this went
            return _cut(request)
        self.requests.append(f"{request.method} {request.path_qs}")
        for name, header, what in ENTERPRISE:
            if request.query.get(name) or request.headers.get(header):
                where = f'query parameter: "{name}"' if request.query.get(name) else f'header: "{header}"'
                return web.Response(status=400, text=f"Invalid {where} - {what} are a Consul Enterprise feature")
        fault = self._fault(request)
        if fault is not None and not fault.after:
            return await fault.respond(request)
        try:
            answer = await handler(request)
        except Refused as refusal:
            return web.Response(status=refusal.status, text=refusal.text)
        return answer if fault is None else await fault.respond(request)

    def _rights(self, request: web.Request) -> Rights:
        return self.acl.rights(secret_of(request))

    async def blocking(self, request: web.Request, read: kv.Read, rights: Rights) -> web.Response:
        """What `read` finds, at once or when its index has passed the one asked for, or after the wait."""
        try:
            asked = int(request.query.get("index", "0"))
        except ValueError:
            raise Refused(400, "Invalid index") from None
        try:
            wait = kv.seconds(request.query["wait"]) if request.query.get("wait") else DEFAULT_WAIT
        except Refused:
            raise Refused(400, "Invalid wait time") from None
        wait = min(wait, LONGEST_WAIT)
        deadline = asyncio.get_running_loop().time() + wait + random.random() * wait / 16
        woken = self.store.changed
        rights.filtered = False
        index, value = read()
        while asked and index <= asked:
            self.waiting += 1
            try:
                async with asyncio.timeout_at(deadline):
                    await woken.wait()
            except TimeoutError:
                break
            finally:
                self.waiting -= 1
            if (fault := self._fault(request)) is not None:
                return await fault.respond(request)  # type: ignore[return-value]
            woken = self.store.changed
            rights.filtered = False
            index, value = read()
        answer = _answer(404 if value is None else 200, _body(value), index)
        if rights.filtered and secret_of(request):  # who shows no token is not told that there is more
            answer.headers["X-Consul-Results-Filtered-By-ACLs"] = "true"
        return answer


class _Lenient(asyncio.Protocol):
    """A header that is sent twice counts once, as for Go: Terraform's provider says Content-Type twice."""

    TWICE = re.compile(rb"(\r\nContent-Type: [^\r]*)\r\nContent-Type: [^\r]*")

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self.connection_made = inner.connection_made  # type: ignore[method-assign]
        self.connection_lost = inner.connection_lost  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        """Of a request."""
        self._inner.data_received(self.TWICE.sub(rb"\1", data))


class KvRoutes:
    """KV, transactions, sessions, status."""

    def __init__(self, consul: FakeConsul) -> None:
        self.consul = consul
        self.store = consul.store

    def add(self, app: web.Application) -> None:
        """To the server."""
        app.router.add_get("/v1/kv/{key:.*}", self.read)
        app.router.add_put("/v1/kv/{key:.*}", self.write)
        app.router.add_delete("/v1/kv/{key:.*}", self.delete)
        app.router.add_put("/v1/txn", self.transaction)
        app.router.add_put("/v1/session/create", self.create)
        app.router.add_put("/v1/session/renew/{id}", self.renew)
        app.router.add_put("/v1/session/destroy/{id}", self.destroy)
        app.router.add_get("/v1/session/info/{id}", self.sessions)
        app.router.add_get("/v1/session/list", self.sessions)
        app.router.add_get("/v1/status/leader", self.leader)
        app.router.add_get("/v1/status/peers", self.peers)

    async def read(self, request: web.Request) -> web.Response:
        rights = self.consul._rights(request)
        return await self.consul.blocking(request, kv.get(self.store, request, rights), rights)

    async def write(self, request: web.Request) -> web.Response:
        return _json(await kv.put(self.store, request, self.consul._rights(request), self.consul.kv_limit))

    async def delete(self, request: web.Request) -> web.Response:
        return _json(kv.delete(self.store, request, self.consul._rights(request)))

    async def transaction(self, request: web.Request) -> web.Response:
        status, body = await kv.txn(self.store, request, self.consul._rights(request), self.consul.kv_limit)
        return _json(body, status)

    async def create(self, request: web.Request) -> web.Response:
        return _json(
            await kv.create_session(self.store, request, self.consul._rights(request), NODE, self.consul.ttl_min)
        )

    async def renew(self, request: web.Request) -> web.Response:
        self.consul._rights(request).need("session", "write", NODE)
        id = request.match_info["id"]
        if (session := self.store.sessions.get(id)) is None:
            raise Refused(404, f"Session id '{id}' not found")
        self.store.renew(session)
        return _json([session.json()])

    async def destroy(self, request: web.Request) -> web.Response:
        self.consul._rights(request).need("session", "write", NODE)
        self.store.end_session(request.match_info["id"])
        return _json(True)

    async def sessions(self, request: web.Request) -> web.Response:
        rights = self.consul._rights(request)
        rights.need("session", "read", NODE)

        def look() -> tuple[int, Any]:
            found = (
                [self.store.sessions.get(request.match_info["id"])]
                if "id" in request.match_info
                else self.store.sessions.values()
            )
            return self.store.tables.get("sessions", 1), [one.json() for one in found if one is not None]

        return await self.consul.blocking(request, look, rights)

    async def leader(self, request: web.Request) -> web.Response:
        return _json("127.0.0.1:8300")

    async def peers(self, request: web.Request) -> web.Response:
        return _json(["127.0.0.1:8300"])


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


def _body(value: Any) -> bytes:
    if value is None:
        return b""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _answer(status: int, body: bytes, index: int) -> web.Response:
    headers = {
        "X-Consul-Index": str(index),
        "X-Consul-KnownLeader": "true",
        "X-Consul-LastContact": "0",
        "X-Consul-Effective-Consistency": "leader",
    }
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)
