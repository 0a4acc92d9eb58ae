"""Nodes, namespaces, garbage and what the agent tells of itself."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from aiohttp import web

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.acl import DENIED, digest
from tests.support.fakes.nomad.checking import several
from tests.support.fakes.nomad.nodes import Nodes
from tests.support.fakes.nomad.reads_api import collectable
from tests.support.fakes.nomad.shapes import VERSION, node_stub
from tests.support.fakes.nomad.state import TERMINAL, Refused, Shape, State
from tests.support.fakes.nomad.web import Ask, Page, Routes, answer, blocking, page

NAMESPACE: Final = re.compile(r"[a-zA-Z0-9-]{1,128}")
_POOLS: Final = {"all": "Node pool with all nodes in the cluster.", "default": "Default node pool."}


class ClusterApi:
    """`signer`: of workload identities. `settings` and `server`: the parts of `agent/self` of that name (client) and
    of the server; `servers`: how many there are."""

    def __init__(self, state: State, nodes: Nodes, signer: Signer, routes: Routes, tasks: Tasks) -> None:
        self._state, self._nodes, self._signer, self._tasks = state, nodes, signer, tasks
        self.settings: dict[str, Any] = {"Enabled": True, "GCMaxAllocs": 50, "MaxKillTimeout": "30s"}
        self.server: dict[str, Any] = {"Enabled": True, "FailoverHeartbeatTTL": 0}
        self.servers = 1
        routes.add("GET", r"/v1/nodes", self.nodes)
        routes.add("GET", r"/v1/node/pools", self.pools)
        routes.add("PUT POST", r"/v1/node/(?P<id>[^/]*)/drain", self.drain)
        routes.add("PUT POST", r"/v1/node/(?P<id>[^/]*)/eligibility", self.eligibility)
        routes.add("GET", r"/v1/node/(?P<id>[^/]*)/allocations", self.node_allocations)
        routes.add("GET", r"/v1/node/(?P<id>[^/]*)", self.node)
        routes.add("GET", r"/v1/namespaces", self.namespaces)
        routes.add("PUT POST", r"/v1/namespace", self.put_namespace)
        routes.add("PUT POST", r"/v1/namespace/(?P<name>[^/]*)", self.put_namespace)
        routes.add("GET", r"/v1/namespace/(?P<name>[^/]*)", self.namespace)
        routes.add("DELETE", r"/v1/namespace/(?P<name>[^/]*)", self.delete_namespace)
        routes.add("PUT POST", r"/v1/system/gc", self.collect)
        routes.add("GET", r"/v1/status/leader", self.leader)
        routes.add("GET", r"/v1/status/peers", self.peers)
        routes.add("GET", r"/v1/regions", self.regions)
        routes.add("GET", r"/v1/agent/self", self.agent)
        routes.add("GET", r"/v1/agent/health", self.health)
        routes.add("GET", r"/v1/operator/scheduler/configuration", self.scheduler)
        routes.add("GET", r"/\.well-known/jwks\.json", self.jwks)

    # --- nodes ---------------------------------------------------------------------------------------------------

    async def nodes(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/nodes`."""
        ask.must_read("node")

        def read() -> tuple[int, Page]:
            items = [n for n in self._state.nodes.values() if n["ID"].startswith(ask.query("prefix"))]
            found = page(ask, items, lambda n: str(n["ID"]), lambda n: node_stub(n, resources=ask.flag("resources")))
            return self._state.tables["nodes"], found

        return await blocking(ask, self._state, read)

    async def node(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/node/:id`."""
        ask.must_read("node")
        if len(ask.parts["id"]) != 36:
            self._nodes.get(ask.parts["id"])

        def read() -> tuple[int, Any]:
            found = self._state.nodes.get(ask.parts["id"])
            if found is None:
                return self._state.tables["nodes"], Refused(404, "node not found")
            return found["ModifyIndex"], found

        return await blocking(ask, self._state, read)

    async def node_allocations(self, ask: Ask) -> web.StreamResponse:
        """Whole ones, of the namespaces that may be read."""
        ask.must_read("node")

        def read() -> tuple[int, Any]:
            here = [a for a in self._state.allocations.values() if a["NodeID"] == ask.parts["id"]]
            return self._state.tables["allocs"], [a for a in here if ask.rights.can("read-job", a["Namespace"])]

        return await blocking(ask, self._state, read)

    async def pools(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/node/pools`: those the token may read."""
        others = {node["NodePool"]: "" for node in self._state.nodes.values()}
        found = [
            {"CreateIndex": 1, "Description": text, "Hash": None, "Meta": None, "ModifyIndex": 1, "Name": name}
            | {"NodeIdentityTTL": 86_400_000_000_000, "SchedulerConfiguration": None}
            for name, text in sorted({**others, **_POOLS}.items())
            if ask.rights.may_read("node_pool")
        ]
        return answer(ask, found, 1, read=True)

    async def drain(self, ask: Ask) -> web.StreamResponse:
        """`POST /v1/node/:id/drain`."""
        if not ask.rights.may_write("node"):
            raise DENIED
        body = ask.json()
        found = self._nodes.drain(ask.parts["id"], body.get("DrainSpec"), eligible=bool(body.get("MarkEligible")))
        return answer(ask, found, found["Index"])

    async def eligibility(self, ask: Ask) -> web.StreamResponse:
        """`POST /v1/node/:id/eligibility`."""
        if not ask.rights.may_write("node"):
            raise DENIED
        found = self._nodes.eligibility(ask.parts["id"], str(ask.json().get("Eligibility", "")))
        return answer(ask, found, found["Index"])

    # --- namespaces ----------------------------------------------------------------------------------------------

    async def namespaces(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/namespaces`: those the token has any right in."""

        def read() -> tuple[int, Page]:
            prefix = ask.query("prefix")
            items = [
                n for name, n in self._state.namespaces.items() if name.startswith(prefix) and ask.rights.sees(name)
            ]
            return self._state.tables["namespaces"], page(ask, items, lambda n: str(n["Name"]), lambda n: n)

        return await blocking(ask, self._state, read)

    async def namespace(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/namespace/:name`."""
        name = ask.parts["name"]
        if not ask.rights.sees(name):
            raise DENIED

        def read() -> tuple[int, Any]:
            found = self._state.namespaces.get(name)
            if found is None:
                return self._state.tables["namespaces"], Refused(404, "Namespace not found")
            return found["ModifyIndex"], found

        return await blocking(ask, self._state, read)

    async def put_namespace(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/namespace`, `PUT /v1/namespace/:name`."""
        body = ask.json()
        name = str(body.get("Name") or ask.parts.get("name", ""))
        if ask.parts.get("name", name) != name:
            raise Refused(400, "Namespace name does not match request path")
        ask.must_manage()
        if not NAMESPACE.fullmatch(name):
            wrong = f'invalid name "{name}". Must match regex ^[a-zA-Z0-9-]{{1,128}}$'
            raise Refused(500, f'Invalid namespace "{name}": {several([wrong])}')
        with self._state.write() as change:
            self.keep_namespace(name, body, change.index)
        return answer(ask, None, change.index)

    def keep_namespace(self, name: str, body: dict[str, Any], index: int) -> None:
        """Without asking."""
        known = self._state.namespaces.get(name, {"CreateIndex": index})
        self._state.namespaces[name] = {
            "Capabilities": body.get("Capabilities"),
            "ConsulConfiguration": None,
            "CreateIndex": known["CreateIndex"],
            "Description": body.get("Description", ""),
            "Hash": digest(repr(sorted(body.items()))),
            "Meta": body.get("Meta"),
            "ModifyIndex": index,
            "Name": name,
            "NodePoolConfiguration": None,
            "OptionalExtraClaims": None,
            "Quota": "",
            "RequiredExtraClaims": None,
            "VaultConfiguration": None,
        }
        self._state.tables["namespaces"] = index

    async def delete_namespace(self, ask: Ask) -> web.StreamResponse:
        """`DELETE /v1/namespace/:name`: only without jobs that are not dead."""
        ask.must_manage()
        name = ask.parts["name"]
        if name not in self._state.namespaces:
            raise Refused(500, "namespace not found")
        if name == "default":
            raise Refused(500, "default namespace can not be deleted")
        if any(key[0] == name and job["Status"] != "dead" for key, job in self._state.jobs.items()):
            raise Refused(500, several([f'namespace "{name}" has non-terminal jobs in regions: [global]']))
        with self._state.write() as change:
            del self._state.namespaces[name]
            self._state.tables["namespaces"] = change.index
        return answer(ask, None, change.index)

    # --- the rest ------------------------------------------------------------------------------------------------

    async def collect(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/system/gc`: dead jobs go with all they left, and so do evaluations and allocations that ended."""
        ask.must_manage()
        self._tasks.spawn(self._collected(), "collection")  # the answer does not wait for it
        return answer(ask, None, None)

    async def _collected(self) -> None:
        await asyncio.sleep(0)
        with self._state.write() as change:
            for key in [key for key in self._state.jobs if collectable(self._state, key)]:
                done = [each["ID"] for each in self._state.evaluations_of(key)]
                change.forgotten(evaluations=done)
                change.purged(key, "JobBatchDeregistered")
            ended = [a for a in self._state.allocations.values() if a["ClientStatus"] in TERMINAL]
            done = [e["ID"] for e in self._state.evaluations.values() if e["Status"] not in {"pending", "blocked"}]
            live = {a["EvalID"] for a in self._state.allocations.values() if a["ClientStatus"] not in TERMINAL}
            gone = [a["ID"] for a in ended if self._may_go(a)]
            change.forgotten(allocations=gone, evaluations=[each for each in done if each not in live])

    def _may_go(self, alloc: Shape) -> bool:
        """A batch job that may still run keeps what it has done."""
        job = self._state.jobs.get((alloc["Namespace"], alloc["JobID"]))
        return job is None or job["Type"] != "batch" or job["Status"] == "dead"

    async def leader(self, ask: Ask) -> web.StreamResponse:
        """Address of its RPC."""
        return answer(ask, "127.0.0.1:4647")

    async def peers(self, ask: Ask) -> web.StreamResponse:
        """Addresses of the servers' RPC."""
        return answer(ask, [f"127.0.0.{number}:4647" for number in range(1, self.servers + 1)])

    async def regions(self, ask: Ask) -> web.StreamResponse:
        """One region."""
        return answer(ask, ["global"])

    async def health(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/agent/health`."""
        fine = {"message": "ok", "ok": True}
        return answer(ask, {"client": fine, "server": fine})

    async def agent(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/agent/self`."""
        ask.must_read("agent")
        tags = {"build": VERSION, "dc": "dc1", "region": "global", "role": "nomad"}
        version = {
            "BuildDate": "2026-01-01T00:00:00Z",
            "Version": VERSION,
            "VersionMetadata": "",
            "VersionPrerelease": "",
        }
        return answer(
            ask,
            {
                "config": {
                    "ACL": {"Enabled": not self.open},
                    "Client": self.settings,
                    "Datacenter": "dc1",
                    "Region": "global",
                    "Server": self.server,
                    "Version": version,
                },
                "member": {"Addr": "127.0.0.1", "Name": "fake.global", "Status": "alive", "Tags": tags},
                "stats": {"nomad": {"bootstrap": "true", "leader": "true", "server": "true"}},
            },
        )

    open = True
    """ACL is off."""

    async def scheduler(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/operator/scheduler/configuration`."""
        ask.must_read("operator")
        kinds = ("BatchScheduler", "ServiceScheduler", "SysBatchScheduler", "SystemScheduler")
        config = {
            "CreateIndex": 4,
            "MemoryOversubscriptionEnabled": self._state.oversubscription,
            "ModifyIndex": 4,
            "PauseEvalBroker": False,
            "PreemptionConfig": {f"{kind}Enabled": kind == "SystemScheduler" for kind in kinds},
            "RejectJobRegistration": False,
            "SchedulerAlgorithm": "binpack",
        }
        found = {"Index": 4, "KnownLeader": True, "LastContact": 0, "NextToken": "", "SchedulerConfig": config}
        return answer(ask, found, 4, read=True)

    async def jwks(self, ask: Ask) -> web.StreamResponse:
        """`GET /.well-known/jwks.json`: for everybody."""
        return answer(ask, self._signer.jwks(), 4, read=True)
