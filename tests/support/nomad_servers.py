"""A real Nomad of three servers and two clients for tests, each a process with ports, a folder and a Consul agent of
its own.

    async with NomadServers(consul.address, acl=True) as nomad:
        leader = await nomad.leader()
        await nomad.kill(leader)
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Collection
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import aiohttp
import psutil
from aiohttp import web

from tests.support.nomad_agent import FAST_HEARTBEATS, START_LIMIT, NomadAgent, processes_of
from tests.support.nomad_calls import Calls

SERVERS = ("server-0", "server-1", "server-2")
CLIENTS = ("client-0", "client-1")
FAILOVER = "4s"
"""After another one leads, so long a dead client is believed to live: five minutes unless told otherwise."""
PORTS_EACH = 3000
"""Dynamic ports of a client: two on one machine must not give the same."""


class NomadServers(NomadAgent):
    """`address`: the agent of the first client, which finds a server that lives. `nodes`: id of each client."""

    parts = (*SERVERS, *CLIENTS)
    _ports_needed = 3 * len(parts)

    def __init__(self, consul: str, **how: Any) -> None:
        super().__init__(**how)
        self._consul_address = consul
        self._consul_agents = {part: ConsulAgent(consul) for part in self.parts}
        self.nodes: dict[str, str] = {}

    @property
    def address(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return self.http(CLIENTS[0])

    def http(self, part: str) -> str:
        """Its own."""
        return f"http://127.0.0.1:{self._ports(part)[0]}"

    def _ports(self, part: str) -> tuple[int, ...]:
        """HTTP, RPC, Serf."""
        first = 3 * self.parts.index(part)
        return self.ports[first : first + 3]

    async def __aenter__(self) -> Self:
        for agent in self._consul_agents.values():
            await agent.start()
        await super().__aenter__()
        found = await self.calls.until(
            "/v1/nodes", lambda nodes: [node["Status"] for node in nodes] == ["ready"] * len(CLIENTS)
        )
        self.nodes = {node["Name"]: node["ID"] for node in found}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            for agent in self._consul_agents.values():
                await agent.close()

    async def leader(self, *, but: Collection[str] = ()) -> str:
        """The server that leads, as soon as one does and can sign; none of `but`."""
        async with asyncio.timeout(START_LIMIT):
            while not (found := await self._leader(but)):  # noqa: ASYNC110 - elections have no event
                await asyncio.sleep(0.02)
        return found

    async def _leader(self, but: Collection[str]) -> str:
        """Empty: none now."""
        for part in (part for part in SERVERS if part in self._processes and part not in but):
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(1), Calls(self.http(part)) as calls:
                    told = (await calls.call("GET", "/v1/status/leader")).text.strip('"')
                    keys = (await calls.call("GET", "/.well-known/jwks.json")).text
                    for each in SERVERS:
                        if told == f"127.0.0.1:{self._ports(each)[1]}" and each not in but and '"kid"' in keys:
                            return each
        return ""

    async def _leads(self) -> bool:
        return bool(await self._leader(()))

    async def kill(self, part: str, number: int = signal.SIGKILL) -> None:
        """End it; `launch` brings it back. Tasks of a client run on."""
        await self._stop(part, number)

    async def lose_machine(self, client: str) -> None:
        """The client dies, with all it ran."""
        await self._stop(client, signal.SIGKILL)
        for process in processes_of(self.folder / client):
            with suppress(psutil.Error):
                process.kill()

    def _configuration(self, part: str) -> dict[str, Any]:
        http, rpc, serf = self._ports(part)
        configuration = self._common(part) | {
            "name": part,
            "consul": self._consul | {"address": self._consul_agents[part].address},
            "ports": {"http": http, "rpc": rpc, "serf": serf},
            "limits": {"http_max_conns_per_client": 1000},
        }
        addresses = {name: f"127.0.0.1:{port}" for name, port in configuration["ports"].items()}
        if part in SERVERS:
            others = [f"127.0.0.1:{self._ports(each)[2]}" for each in SERVERS]
            server = {
                "enabled": True,
                "bootstrap_expect": len(SERVERS),
                "raft_multiplier": 1,
                "failover_heartbeat_ttl": FAILOVER,
                "server_join": {"retry_join": others, "retry_interval": "1s"},
            }
            return configuration | {"advertise": addresses, "server": server | FAST_HEARTBEATS}
        first = 20_000 + PORTS_EACH * CLIENTS.index(part)
        client = self._client_stanza([f"127.0.0.1:{self._ports(each)[1]}" for each in SERVERS])
        own = {"min_dynamic_port": first, "max_dynamic_port": first + PORTS_EACH - 1}
        return configuration | {
            "advertise": {"http": addresses["http"], "rpc": "127.0.0.1", "serf": "127.0.0.1"},
            "client": client | own,
        }


class ConsulAgent:
    """That of one machine, in front of a fake Consul: it lists what was registered with it, and no more. A Nomad
    client removes every service it does not know."""

    def __init__(self, consul: str) -> None:
        self._consul = consul
        self._mine: set[str] = set()
        self.address = ""
        """`host:port`."""

    async def start(self) -> None:
        """Listen."""
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        """After a `start`."""
        if self.address:
            await self._runner.cleanup()
            await self._session.close()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        if request.path == "/v1/agent/service/register":
            wanted = json.loads(body)
            self._mine.add(wanted.get("ID") or wanted["Name"])
        sent = {name: value for name, value in request.headers.items() if name.startswith("X-")}
        url = self._consul + request.path_qs
        async with self._session.request(request.method, url, data=body, headers=sent) as answer:
            found, kind = await answer.read(), answer.content_type
            headers = {name: value for name, value in answer.headers.items() if name.startswith("X-")}
        if answer.status == 200 and request.path in {"/v1/agent/services", "/v1/agent/checks"}:
            whole = json.loads(found).items()
            found = json.dumps({id: one for id, one in whole if one.get("ServiceID", id) in self._mine}).encode()
        return web.Response(status=answer.status, body=found, headers=headers, content_type=kind)
