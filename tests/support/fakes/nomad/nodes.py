"""Nodes that come, drain, go and come back, as the servers see it."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.nomad.clients import Clients
from tests.support.fakes.nomad.shapes import TRANSITION, make_evaluation
from tests.support.fakes.nomad.state import TERMINAL, Refused, Shape, State, Write, is_over


class Nodes:
    """Changes of nodes; `Clients` does what they do."""

    def __init__(self, state: State, clients: Clients, tasks: Tasks) -> None:
        self._state, self._clients, self._tasks = state, clients, tasks
        self._drains: dict[str, asyncio.Task[None]] = {}

    def add(self, node: Shape) -> Shape:
        """A new one, or one that changed."""
        with self._state.write() as change:
            self._state.room.add(node["ID"])
            stored = change.node(node, "NodeRegistration")
            self._evaluate_whole(change)
        return stored

    def _evaluate_whole(self, change: Write) -> None:
        """Jobs that run on each node may want this one."""
        for job in list(self._state.jobs.values()):
            parent = job["ParameterizedJob"] is not None and not job["Dispatched"]
            if job["Type"] in {"system", "sysbatch"} and not job["Stop"] and not parent:
                change.evaluation(make_evaluation(job, "node-update"))

    def _evaluate_here(self, change: Write, node_id: str, trigger: str, kind: str, only: set[str] | None = None) -> int:
        """One evaluation for each job with an allocation there. The number of them."""
        jobs = {}
        for alloc in self._state.allocations.values():
            if alloc["NodeID"] == node_id and not is_over(alloc) and (only is None or alloc["ID"] in only):
                jobs[alloc["Namespace"], alloc["JobID"]] = alloc["Job"]
        for job in jobs.values():
            change.evaluation(make_evaluation(job, trigger), kind)
        return len(jobs)

    def get(self, node_id: str) -> Shape:
        """Raises Refused."""
        if len(node_id) != 36:
            raise Refused(500, "node lookup failed: index error: UUID must be 36 characters")
        node = self._state.nodes.get(node_id)
        if node is None:
            raise Refused(404, "node not found")
        return node

    def eligibility(self, node_id: str, wanted: str) -> Shape:
        """The answer of the API. Raises Refused."""
        node = self.get(node_id)
        if wanted not in {"eligible", "ineligible"}:
            raise Refused(500, f'invalid scheduling eligibility "{wanted}"')
        if wanted == "eligible" and node["Drain"]:
            raise Refused(500, "can not set node's scheduling eligibility to eligible while it is draining")
        with self._state.write() as change:
            if wanted == "eligible":
                self._state.room.add(node_id)
            change.node(node | {"SchedulingEligibility": wanted}, "NodeEligibility")
        return {"EvalCreateIndex": 0, "EvalIDs": None, "Index": change.index, "NodeModifyIndex": 0}

    def drain(self, node_id: str, spec: dict[str, Any] | None, *, eligible: bool = False) -> Shape:
        """`spec`: `{"Deadline": ns, "IgnoreSystemJobs": bool}`; None: drains no more. -1: at once."""
        node = self.get(node_id)
        if (going := self._drains.pop(node_id, None)) is not None:
            going.cancel()
        began = _time()
        with self._state.write() as change:
            if spec is None:
                ineligible = node["Drain"] and not eligible
                more: Shape = {
                    "Drain": False,
                    "DrainStrategy": None,
                    "SchedulingEligibility": "ineligible" if ineligible else "eligible",
                }
                if node["Drain"]:
                    more["LastDrain"] = (node["LastDrain"] or {}) | {"Status": "canceled", "UpdatedAt": began}
                self._state.room.add(node_id)
            else:
                deadline = int(spec.get("Deadline") or 0)
                strategy = {"Deadline": deadline, "IgnoreSystemJobs": bool(spec.get("IgnoreSystemJobs"))}
                more = {
                    "Drain": True,
                    "DrainStrategy": strategy | {"ForceDeadline": _time(max(deadline, 0) / 1e9), "StartedAt": began},
                    "SchedulingEligibility": "ineligible",
                    "LastDrain": {
                        "AccessorID": "",
                        "Meta": None,
                        "StartedAt": began,
                        "Status": "draining",
                        "UpdatedAt": began,
                    },
                }
            change.node(node | more, "NodeDrain")
        if spec is not None:
            seconds = None if deadline == 0 else max(deadline, 0) / 1e9
            self._drains[node_id] = self._tasks.spawn(self._drained(node_id, seconds), f"drain {node_id}")
        return {"EvalCreateIndex": 0, "EvalIDs": None, "Index": change.index, "NodeModifyIndex": change.index}

    async def _drained(self, node_id: str, seconds: float | None) -> None:
        """Services move at once, batch runs to its end or the deadline."""
        self._migrate(node_id, lambda alloc: alloc["Job"]["Type"] == "service", placed=True)
        try:
            async with asyncio.timeout(seconds):
                while self._left(node_id):
                    await self._state.changed()
        except TimeoutError:
            self._migrate(node_id, lambda alloc: True, placed=False)
        self._drains.pop(node_id, None)
        node = self._state.nodes[node_id]
        with self._state.write() as change:
            last = node["LastDrain"] | {"Status": "complete", "UpdatedAt": _time()}
            change.node(node | {"Drain": False, "DrainStrategy": None, "LastDrain": last}, "NodeDrain")

    def _left(self, node_id: str) -> list[Shape]:
        here = [alloc for alloc in self._state.allocations.values() if alloc["NodeID"] == node_id]
        return [alloc for alloc in here if alloc["ClientStatus"] not in TERMINAL]

    def _migrate(self, node_id: str, chosen: Any, *, placed: bool) -> None:
        moving = [alloc for alloc in self._left(node_id) if not is_over(alloc) and chosen(alloc)]
        if not moving:
            return
        with self._state.write() as change:
            for alloc in moving:
                transition = TRANSITION | {"Migrate": True} | ({} if placed else {"MigrateDisablePlacement": True})
                change.allocation(alloc | {"DesiredTransition": transition}, "AllocationUpdateDesiredStatus")
            only = {alloc["ID"] for alloc in moving}
            self._evaluate_here(change, node_id, "node-drain", "AllocationUpdateDesiredStatus", only)

    async def lose(self, node_id: str) -> None:
        """Its heartbeats have been missing for long enough."""
        await self._clients.lose(node_id)
        with self._state.write() as change:
            change.node(self.get(node_id) | {"Status": "down"}, "NodeStreamEvent")
        if self._left(node_id):
            with self._state.write() as change:
                self._evaluate_here(change, node_id, "node-update", "EvaluationUpdated")

    def back(self, node_id: str) -> None:
        """The machine was started again: it is ready, and nothing of what ran there does."""
        node = self.get(node_id)
        with self._state.write() as change:
            change.node(node, "NodeRegistration")
        with self._state.write() as change:
            self._state.room.add(node_id)
            change.node(node | {"Status": "ready"}, "NodeStreamEvent")
            self._evaluate_whole(change)


def _time(seconds: float = 0.0) -> str:
    """From now."""
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
