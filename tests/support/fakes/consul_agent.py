"""The agent's half of a fake Consul: services, their checks, and what the catalog and the health endpoints say."""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.consul_filter import matcher
from tests.support.fakes.consul_kv import seconds
from tests.support.fakes.consul_state import Refused, Store

if TYPE_CHECKING:
    from tests.support.fakes.consul import FakeConsul

NODE_ID = "5b9c1b1e-6a52-4c1e-9b6a-6f0f5a0c0001"
DATACENTER = "dc1"
META_KEY = re.compile(r"[a-zA-Z0-9_-]+")


class Agent:
    """Services and checks of one node. Checks are really run, each `Interval` from a random point in it on."""

    def __init__(self, store: Store, tasks: Tasks, node: str) -> None:
        self.node = node
        self.services: dict[str, dict[str, Any]] = {}
        self.checks: dict[str, dict[str, Any]] = {}
        self._store = store
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Its tasks are their owner's."""
        if self._http is not None:
            await self._http.close()

    # --- services --------------------------------------------------------------------------------------------

    def register(self, wanted: dict[str, Any]) -> None:
        """PUT /v1/agent/service/register; what is there under this id is replaced. Raises Refused."""
        name = wanted.get("Name", "")
        if not name:
            raise Refused(400, "Missing service name")
        _meta(wanted.get("Meta") or {})
        id = wanted.get("ID") or name
        checks = [*(wanted.get("Checks") or ()), *([wanted["Check"]] if wanted.get("Check") else ())]
        old = self.services.get(id)
        made = {
            "ID": id,
            "Service": name,
            "Tags": wanted.get("Tags") or [],
            "Meta": wanted.get("Meta") or {},
            "Port": wanted.get("Port", 0),
            "Address": wanted.get("Address", ""),
            "TaggedAddresses": wanted.get("TaggedAddresses") or {},
            "Weights": wanted.get("Weights") or {"Passing": 1, "Warning": 1},
            "EnableTagOverride": wanted.get("EnableTagOverride", False),
        }
        if old is None or made != {field: old[field] for field in made}:
            index = self._store.bump("services")
            self.services[id] = {**made, "CreateIndex": old["CreateIndex"] if old else index, "ModifyIndex": index}
            self._touch(name)
        kept = set()
        for number, check in enumerate(checks, 1):
            suffix = f":{number}" if len(checks) > 1 else ""
            kept.add(self.add_check({"CheckID": f"service:{id}{suffix}", **check, "ServiceID": id}))
        for stale in [c for c, check in self.checks.items() if check["ServiceID"] == id and c not in kept]:
            self.remove_check(stale)

    def deregister(self, id: str) -> None:
        """Raises Refused."""
        if (service := self.services.pop(id, None)) is None:
            raise Refused(
                404, f'Unknown service ID "{id}". Ensure that the service ID is passed, not the service name.'
            )
        for check in [c for c, one in self.checks.items() if one["ServiceID"] == id]:
            self.remove_check(check)
        self._store.bump("services")
        self._touch(service["Service"])
        if not any(one["Service"] == service["Service"] for one in self.services.values()):
            self._store.tables["extinction"] = self._store.index

    def _touch(self, service: str) -> None:
        self._store.tables[f"service.{service}"] = self._store.index
        self._store.wake()

    # --- checks ----------------------------------------------------------------------------------------------

    def add_check(self, wanted: dict[str, Any]) -> str:
        """Register it and begin to run it. Its status stays when it was there before."""
        service = self.services.get(wanted.get("ServiceID", ""), {})
        id = wanted.get("CheckID") or wanted.get("ID") or wanted["Name"]
        kinds = ("HTTP", "TCP", "TTL")
        old = self.checks.get(id)
        index = self._store.bump("checks")
        self.checks[id] = {
            "Node": self.node,
            "CheckID": id,
            "Name": wanted.get("Name") or f"Service '{service.get('Service', '')}' check",
            "Status": old["Status"] if old else wanted.get("Status") or "critical",
            "Notes": wanted.get("Notes", ""),
            "Output": old["Output"] if old else "",
            "ServiceID": wanted.get("ServiceID", ""),
            "ServiceName": service.get("Service", ""),
            "ServiceTags": service.get("Tags", []),
            "Type": next((kind.lower() for kind in kinds if wanted.get(kind)), ""),
            "Interval": wanted.get("Interval", ""),
            "Timeout": wanted.get("Timeout", ""),
            "Definition": {},
            "CreateIndex": old["CreateIndex"] if old else index,
            "ModifyIndex": index,
        }
        self._stop(id)
        if wanted.get("HTTP") or wanted.get("TCP"):
            self._running[id] = self._tasks.spawn(self._run(id, wanted), f"check {id}")
        return str(id)

    def remove_check(self, id: str) -> None:
        """Nothing happens when it is not there."""
        self._stop(id)
        if (check := self.checks.pop(id, None)) is not None:
            self._store.bump("checks")
            self._touch(check["ServiceName"])

    def _stop(self, id: str) -> None:
        if (task := self._running.pop(id, None)) is not None:
            task.cancel()

    def update(self, id: str, status: str, output: str) -> None:
        """Only a change of status wakes anybody."""
        check = self.checks[id]
        check["Output"] = output
        if check["Status"] != status:
            check["Status"], check["ModifyIndex"] = status, self._store.bump("checks")
            self._touch(check["ServiceName"])

    async def _run(self, id: str, wanted: dict[str, Any]) -> None:
        interval = seconds(wanted.get("Interval") or "10s")
        timeout = seconds(wanted.get("Timeout") or "10s")
        good, bad = 0, 0
        await asyncio.sleep(random.random() * interval)
        while True:
            status, output = await self._try(wanted, timeout)
            good, bad = (good + 1, 0) if status == "passing" else (0, bad + 1)
            if good > wanted.get("SuccessBeforePassing", 0) or bad > wanted.get("FailuresBeforeCritical", 0):
                self.update(id, status, output)
            await asyncio.sleep(interval)

    async def _try(self, wanted: dict[str, Any], timeout: float) -> tuple[str, str]:
        try:
            async with asyncio.timeout(timeout):
                if address := wanted.get("TCP"):
                    host, _, port = address.rpartition(":")
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                    return "passing", f"TCP connect {address}: Success"
                if self._http is None:
                    self._http = aiohttp.ClientSession(headers={"User-Agent": "Consul Health Check"})
                method, url = wanted.get("Method") or "GET", wanted["HTTP"]
                # A connection for each run, as Consul has it.
                headers = [("Connection", "close")]
                headers += [(name, one) for name, all in (wanted.get("Header") or {}).items() for one in all]
                body = wanted.get("Body") or None
                asked = self._http.request(method, url, headers=headers, data=body, allow_redirects=False)
                async with asked as answer:
                    text = (await answer.content.read(4096)).decode("utf-8", "replace")
                    status = "passing" if answer.ok else "warning" if answer.status == 429 else "critical"
                    return status, f"HTTP {method} {url}: {answer.status} {answer.reason} Output: {text}"
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            return "critical", f"{wanted.get('HTTP') or wanted.get('TCP')}: {error or 'context deadline exceeded'}"

    # --- what others see -------------------------------------------------------------------------------------

    def node_json(self) -> dict[str, Any]:
        """As in a health answer."""
        return {"ID": NODE_ID, "Node": self.node, "Address": "127.0.0.1", "Datacenter": DATACENTER, "Meta": {}}

    def health(self, name: str, passing: bool) -> tuple[int, list[dict[str, Any]]]:
        """GET /v1/health/service/:name, with its index."""
        tables = self._store.tables
        found = [one for one in self.services.values() if one["Service"] == name]
        if found:
            index = tables[f"service.{name}"]
        elif not (index := tables.get("extinction", 0)):  # no service ever went: whatever is in the catalog counts
            index = max(tables.get(table, 0) for table in ("services", "checks"))
        shown = []
        for service in sorted(found, key=lambda one: str(one["ID"])):
            checks = [{**SERF, "Node": self.node}]
            checks += [check for check in self.checks.values() if check["ServiceID"] == service["ID"]]
            if not passing or all(check["Status"] == "passing" for check in checks):
                shown.append({"Node": self.node_json(), "Service": service, "Checks": checks})
        return max(index, 1), shown


def _meta(meta: dict[str, str]) -> None:
    """https://developer.hashicorp.com/consul/api-docs/agent/service#meta"""
    if len(meta) > 64:
        raise Refused(400, "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs")
    for key, value in meta.items():
        why = "Key contains invalid characters" if not META_KEY.fullmatch(key) else ""
        why = why or ("Key is too long (limit: 128 characters)" if len(key) > 128 else "")
        why = why or ("Key prefix 'consul-' is reserved for internal use" if key.startswith("consul-") else "")
        why = why or ("Value is too long (limit: 512 characters)" if len(value.encode()) > 512 else "")
        if why:
            raise Refused(400, f"Invalid Service Meta: Couldn't load metadata pair ('{key}', '{value}'): {why}")


SERF = {
    "CheckID": "serfHealth",
    "Name": "Serf Health Status",
    "Status": "passing",
    "Notes": "",
    "Output": "Agent alive and reachable",
    "ServiceID": "",
    "ServiceName": "",
    "ServiceTags": [],
}


class AgentRoutes:
    """Agent, health and catalog."""

    def __init__(self, consul: FakeConsul) -> None:
        self.consul = consul
        self.agent = consul.agent
        self.store = consul.store

    def add(self, app: web.Application) -> None:
        """To the server."""
        app.router.add_get("/v1/agent/self", self.own)
        app.router.add_get("/v1/agent/services", self.services)
        app.router.add_get("/v1/agent/checks", self.checks)
        app.router.add_put("/v1/agent/service/register", self.register)
        app.router.add_put("/v1/agent/service/deregister/{id}", self.deregister)
        app.router.add_put("/v1/agent/check/register", self.register_check)
        app.router.add_put("/v1/agent/check/deregister/{id}", self.deregister_check)
        app.router.add_put("/v1/agent/check/{how:pass|warn|fail}/{id}", self.set_check)
        app.router.add_get("/v1/health/service/{name}", self.health)
        app.router.add_get("/v1/catalog/services", self.catalog)
        app.router.add_get("/v1/catalog/nodes", self.nodes)

    async def own(self, request: web.Request) -> web.Response:
        self.consul._rights(request).need("agent", "read", self.agent.node)
        return web.json_response(agent_self(self.agent.node, self.consul.version))

    async def services(self, request: web.Request) -> web.Response:
        rights = self.consul._rights(request)
        keep = matcher(request.query.get("filter", ""))
        shown = {
            id: {**one, "Datacenter": DATACENTER}
            for id, one in self.agent.services.items()
            if rights.may("service", "read", one["Service"]) and keep(one)
        }
        return web.json_response(shown)

    async def checks(self, request: web.Request) -> web.Response:
        rights = self.consul._rights(request)
        shown = {id: one for id, one in self.agent.checks.items() if rights.may("service", "read", one["ServiceName"])}
        return web.json_response(shown)

    async def register(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        self.consul._rights(request).need("service", "write", wanted.get("Name", ""))
        self.agent.register(wanted)
        return web.Response()

    async def deregister(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        self.consul._rights(request).need("service", "write", self.agent.services.get(id, {}).get("Service", id))
        self.agent.deregister(id)
        return web.Response()

    async def register_check(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        rights = self.consul._rights(request)
        if service := self.agent.services.get(wanted.get("ServiceID", "")):
            rights.need("service", "write", service["Service"])
        else:
            rights.need("node", "write", self.agent.node)
        self.agent.add_check(wanted)
        return web.Response()

    async def deregister_check(self, request: web.Request) -> web.Response:
        self.agent.remove_check(self._own_check(request))
        return web.Response()

    def _own_check(self, request: web.Request) -> str:
        """Its id: it is there, and who asks may write it. Raises Refused."""
        id = request.match_info["id"]
        rights = self.consul._rights(request)
        if (check := self.agent.checks.get(id)) is None:
            raise Refused(404, f'Unknown check ID "{id}". Ensure that the check ID is passed, not the check name.')
        if check["ServiceName"]:
            rights.need("service", "write", check["ServiceName"])
        else:
            rights.need("node", "write", self.agent.node)
        return id

    async def set_check(self, request: web.Request) -> web.Response:
        status = {"pass": "passing", "warn": "warning", "fail": "critical"}[request.match_info["how"]]
        id = self._own_check(request)
        if self.agent.checks[id]["Type"] != "ttl":
            raise Refused(500, f'CheckID "{id}" does not have associated TTL')
        self.agent.update(id, status, request.query.get("note", ""))
        return web.Response()

    async def health(self, request: web.Request) -> web.Response:
        rights = self.consul._rights(request)
        name, passing = request.match_info["name"], request.query.get("passing", "0") not in {"0", "false"}
        keep = matcher(request.query.get("filter", ""))

        def look() -> tuple[int, Any]:
            index, found = self.agent.health(name, passing)
            # Both count: https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service
            if not (rights.may("service", "read", name) and rights.may("node", "read", self.agent.node)):
                rights.filtered = rights.filtered or bool(found)
                return index, []
            return index, [one for one in found if keep(one)]

        answer = await self.consul.blocking(request, look, rights)
        if request.query.get("index", "0") != "0":
            # Agents answer these from a stream of events (use_streaming_backend), which does not tell what it left out.
            answer.headers.popall("X-Consul-Results-Filtered-By-ACLs", None)
            answer.headers["X-Consul-Query-Backend"] = "streaming"
        return answer

    async def catalog(self, request: web.Request) -> web.Response:
        rights = self.consul._rights(request)

        def look() -> tuple[int, Any]:
            named: dict[str, list[str]] = {"consul": []}
            for one in self.agent.services.values():
                if rights.may("service", "read", one["Service"]):
                    named[one["Service"]] = sorted({*named.get(one["Service"], ()), *one["Tags"]})
            return max(self.store.tables.get("services", 0), 1), named

        return await self.consul.blocking(request, look, rights)

    async def nodes(self, request: web.Request) -> web.Response:
        rights = self.consul._rights(request)
        return await self.consul.blocking(request, lambda: (1, [self.agent.node_json()]), rights)


def agent_self(node: str, version: str) -> dict[str, Any]:
    """GET /v1/agent/self: what a Nomad agent's fingerprint reads."""
    return {
        "Config": {
            "Datacenter": DATACENTER,
            "PrimaryDatacenter": DATACENTER,
            "NodeName": node,
            "NodeID": NODE_ID,
            "Revision": "0000000",
            "Server": True,
            "Version": version,
            "BuildDate": "2026-01-01T00:00:00Z",
        },
        "DebugConfig": {
            "ConnectEnabled": False,
            "GRPCPort": -1,
            "GRPCTLSPort": -1,
            "DNSPort": -1,
            "DNSAddrs": [],
        },
        "Coord": None,
        "Member": {"Name": node, "Addr": "127.0.0.1", "Port": 8301, "Status": 1, "Tags": {"segment": ""}},
        "Stats": {"serf_lan": {"members": "1"}},
        "Meta": {},
    }
