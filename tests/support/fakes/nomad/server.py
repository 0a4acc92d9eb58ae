"""A Nomad for tests: one server, as many nodes as wanted, tasks that really run.

async with FakeNomad() as nomad:
    nomad.add_node("one", devices=[device_group("NVIDIA H100 80GB HBM3", ["GPU-1", "GPU-2"])])
    … nomad.address, nomad.token('namespace "*" { policy = "read" }') …

What it answers was measured on Nomad 2.0.5, and its contract suite runs on a real one too. Not there: deployments,
scaling, rescheduling, periodic jobs, preemption, variables, several servers or regions.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.acl import MANAGEMENT, make_token, parsed, rights_of
from tests.support.fakes.nomad.acl_api import AclApi
from tests.support.fakes.nomad.client_api import ClientApi
from tests.support.fakes.nomad.clients import Clients
from tests.support.fakes.nomad.cluster_api import ClusterApi
from tests.support.fakes.nomad.constraints import computed_class
from tests.support.fakes.nomad.faults import Faults
from tests.support.fakes.nomad.jobs_api import JobsApi
from tests.support.fakes.nomad.nodes import Nodes
from tests.support.fakes.nomad.reads_api import ReadsApi
from tests.support.fakes.nomad.running import Running
from tests.support.fakes.nomad.scheduling import Scheduler
from tests.support.fakes.nomad.shapes import make_node
from tests.support.fakes.nomad.state import TERMINAL, Refused, Shape, State
from tests.support.fakes.nomad.stream_api import StreamApi
from tests.support.fakes.nomad.web import Ask, Routes, refusal
from tests.support.fakes.tasks.runner import TaskRunner
from tests.support.ports import held_port, stop_listening

BODY: int = 8 * 1024 * 1024
"""Bytes of a request."""
PATIENCE = 60.0
"""Seconds after which a test has failed."""
SEEN = {"consul": "1.22.0", "vault": "2.7.2"}
"""Versions nodes tell of what they can reach."""
TOO_MANY = b"Your IP is issuing too many concurrent connections, please rate limit your calls\n"


class FakeNomad:
    """`acl`: on, with a management token in `management`. `runner`: who runs tasks, closed with this; None: a
    TaskRunner of its own. `signer`: of workload identities; None: the runner's.

    `window` (seconds): how long a dispatch with a token does not see another one: see JobsApi.window.
    `tls`: it is HTTPS. `faults`: of requests. `connections`: how many at once, 0: any number. `state`: the tables, to
    look at.
    """

    def __init__(
        self,
        *,
        acl: bool = False,
        runner: Running | None = None,
        signer: Signer | None = None,
        connections: int = 0,
        window: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.state = State()
        self.faults = Faults()
        self.connections, self._window = connections, window
        self.signer = signer or getattr(runner, "signer", None) or Signer()
        self.management = ""
        self._acl_enabled, self._runner = acl, runner
        self._port = 0
        self._held = ExitStack()
        self._listening: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        runner = self._runner or TaskRunner(Path(tempfile.mkdtemp(prefix="mn-nodes-")), signer=self.signer)
        self.running = runner
        self._tasks = Tasks("fake nomad")
        self.routes = Routes()
        self.scheduler = Scheduler(self.state)
        self.clients = Clients(self.state, runner, self._tasks)
        self.nodes = Nodes(self.state, self.clients, self._tasks)
        self.jobs = jobs = JobsApi(self.state, self.scheduler, self.routes)
        jobs.window = self._window
        reads = ReadsApi(self.state, self.routes)
        self.cluster = ClusterApi(self.state, self.nodes, self.signer, self.routes, self._tasks)
        self.cluster.open = not self._acl_enabled
        acl = AclApi(self.state, self.routes, enabled=self._acl_enabled)
        ClientApi(self.state, self.clients, self.routes)
        self.streams = StreamApi(self.state, self.routes)
        jobs.wire_last(self.routes)
        reads.wire_last(self.routes)
        self.cluster.keep_namespace("default", {"Description": "Default shared namespace"}, 1)
        if self._acl_enabled:
            self.management = acl.bootstrapped()["SecretID"]
        self._web = web.Server(self._handle, handler_cancellation=True, keepalive_timeout=75.0)
        self._tasks.spawn(self.scheduler.run(), "scheduler")
        self._tasks.spawn(self.clients.run(), "clients")
        self._port = self._held.enter_context(held_port())
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.gone()
        self._held.close()
        await self._web.shutdown(1.0)
        await self._tasks.close()
        await self.running.close()

    # --- the cluster ---------------------------------------------------------------------------------------------

    def add_node(self, name: str = "node", **described: Any) -> str:
        """A ready node; its id. See `make_node`. It knows of the Consul and Vault that the runner has."""
        known = {f"{each}.version": version for each, version in SEEN.items() if getattr(self.running, each, None)}
        attributes = known | dict(described.pop("attributes", None) or {})
        return str(self.nodes.add(make_node(name, attributes=attributes, **described))["ID"])

    def devices(self, node_id: str, groups: Sequence[Shape]) -> None:
        """A node has these devices now."""
        node = self.state.nodes[node_id]
        changed = node | {"NodeResources": node["NodeResources"] | {"Devices": list(groups) or None}}
        self.nodes.add(changed | {"ComputedClass": computed_class(changed)})

    def add_namespace(self, name: str) -> None:
        """As `PUT /v1/namespace`."""
        with self.state.write() as change:
            self.cluster.keep_namespace(name, {"Name": name}, change.index)

    def token(self, *rules: str) -> str:
        """The secret of a new client token with a policy of these rules (HCL)."""
        names = []
        with self.state.write() as change:
            for text in rules:
                parsed(text)
                name = f"policy-{len(self.state.policies)}"
                self.state.policies[name] = {"Name": name, "Rules": text, "Description": "", "JobACL": None} | {
                    "CreateIndex": change.index,
                    "ModifyIndex": change.index,
                    "Hash": "",
                }
                names.append(name)
            return str(make_token(change, {"Name": "test", "Type": "client", "Policies": names})["SecretID"])

    def drain(self, node: str, deadline: float = 3600.0) -> None:
        """Seconds; batch jobs run on until then."""
        self.nodes.drain(node, {"Deadline": round(deadline * 1e9)})

    async def lose(self, node: str) -> None:
        """Its machine dies, and the servers know."""
        await self.nodes.lose(node)

    async def lose_allocation(self, alloc_id: str) -> None:
        """One allocation alone is reported lost; its task is killed, and nothing takes its place."""
        await self.running.lose(alloc_id)
        self.clients.mute(alloc_id)
        alloc = self.state.allocations[alloc_id]
        with self.state.write() as change:
            lost = {"ClientStatus": "lost", "ClientDescription": "", "DesiredStatus": "stop"}
            change.allocation(alloc | lost | {"DesiredDescription": "alloc is lost"}, "AllocationUpdated")
            change.settle([(alloc["Namespace"], alloc["JobID"])], "AllocationUpdated")

    async def until(self, holds: Any) -> None:
        """Returns when `holds(state)` is true. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            while not holds(self.state):
                await self.state.changed()

    def running_allocations(self, statuses: Sequence[str] = ("pending", "running")) -> list[Shape]:
        """Those that have not ended."""
        return [a for a in self.state.allocations.values() if a["ClientStatus"] in statuses]

    async def settled(self) -> None:
        """Returns when no allocation is on its way to an end."""
        await self.until(
            lambda state: all(
                a["DesiredStatus"] == "run" or a["ClientStatus"] in TERMINAL for a in state.allocations.values()
            )
        )

    # --- coming and going ----------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            self._accepted, "127.0.0.1", self._port, reuse_address=True, ssl=self._tls
        )

    def _accepted(self) -> asyncio.BaseProtocol:
        if self.connections and len(self._web.connections) >= self.connections:
            return _TooMany()
        return self._web()

    async def gone(self) -> None:
        """No server any more: connections are refused, those that are open are cut. Tasks run on."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        await stop_listening(listening)
        for connection in list(self._web.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)

    async def back(self) -> None:
        """The server is there again, on its old port, with all it knew."""
        if self._listening is None:
            await self._listen()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Gone for as long as this is open."""
        await self.gone()
        try:
            yield
        finally:
            await self.back()

    # --- requests ------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._listening is None:  # its connection was being made while this went
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError
        try:
            return await self.faults.apply(request, lambda: self._answer(request))
        except Refused as refused:
            return refusal(refused)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler, parts = self.routes.find(request.method, request.path)
        body = await request.content.read(-1) if request.body_exists else b""
        if len(body) > BODY:
            raise Refused(413, "request body too large")
        if request.query.get("region", "global") != "global":
            raise Refused(500, "No path to region")
        secret = request.headers.get("X-Nomad-Token", "")
        if not secret:
            secret = request.headers.get("Authorization", "").removeprefix("Bearer ")
        public = request.path.startswith(("/v1/status/", "/v1/regions", "/.well-known", "/v1/agent/health"))
        rights = rights_of(self.state, secret, self.signer) if self._acl_enabled and not public else MANAGEMENT
        return await handler(Ask(request, request.method, request.path, body, rights, secret, parts))


class _TooMany(asyncio.Protocol):
    """Over the limit of connections of one address: refused as it is accepted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        head = f"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: {len(TOO_MANY)}\r\n"
        transport.write(head.encode() + b"Connection: close\r\n\r\n" + TOO_MANY)
        transport.close()
