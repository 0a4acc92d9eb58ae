"""The nodes' side: allocations are started and stopped as the servers want, and what happens to them is reported in
batches: each 200 ms, the first report of a healthy one each second (nomad-measured: 2.6)."""

from __future__ import annotations

import asyncio
import signal as signals
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.nomad.running import Running
from tests.support.fakes.nomad.state import TERMINAL, Refused, Shape, State

TICK: Final = 0.2
SLOW: Final = 5
"""Ticks for which a first report may wait."""
NETWORK: Final = {"Address": "", "AddressIPv6": "", "DNS": None, "InterfaceName": ""}


@dataclass
class Work:
    """One allocation on its node."""

    alloc_id: str
    node_id: str
    task: str
    state: Shape = field(default_factory=dict)
    """What the node knows: `TaskStates`, `ClientStatus`, `ClientDescription`."""
    reported: bool = False
    """Something of it was told to the servers."""
    stopping: bool = False
    muted: bool = False
    """The node is gone, or the allocation forgotten."""

    @property
    def over(self) -> bool:
        """It has ended."""
        return self.state.get("ClientStatus") in TERMINAL


@dataclass
class Reports:
    """Of one node, not sent yet."""

    waiting: dict[str, Work] = field(default_factory=dict)
    sender: asyncio.Task[None] | None = None
    due: float = 0.0


class Clients:
    """All nodes of a fake."""

    def __init__(self, state: State, running: Running, tasks: Tasks) -> None:
        self._state, self._running, self._tasks = state, running, tasks
        self._work: dict[str, Work] = {}
        self._reports: dict[str, Reports] = {}
        self._wake = asyncio.Event()
        self._began = asyncio.get_running_loop().time()
        self.max_kill_timeout = 30.0
        """Seconds; longer ones are cut silently (the client's `max_kill_timeout`)."""
        self.prompt = False
        """Report at once, not in ticks: for tests that do not look at timing."""
        state.watchers.append(self._wake.set)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._state.moved:
                self._look(self._state.moved.pop())

    def _look(self, alloc_id: str) -> None:
        alloc, work = self._state.allocations.get(alloc_id), self._work.get(alloc_id)
        if alloc is None:
            if work is not None:
                self._tasks.spawn(self._forget(work), f"forget {alloc_id}")
            return
        node = self._state.nodes.get(alloc["NodeID"])
        if work is None and node is not None and node["Status"] == "ready" and alloc["DesiredStatus"] == "run":
            if alloc["ClientStatus"] == "pending":
                self._start(alloc, node)
        elif work is not None and alloc["DesiredStatus"] != "run" and not work.stopping and not work.over:
            work.stopping = True
            self._tasks.spawn(self._stop(work, alloc), f"stop {alloc_id}")

    def _start(self, alloc: Shape, node: Shape) -> None:
        group = next(g for g in alloc["Job"]["TaskGroups"] if g["Name"] == alloc["TaskGroup"])
        work = self._work[alloc["ID"]] = Work(alloc["ID"], node["ID"], group["Tasks"][0]["Name"])
        self._tasks.spawn(
            self._running.start(alloc, alloc["Job"], node, lambda told: self._told(work, told)), f"start {alloc['ID']}"
        )

    async def _stop(self, work: Work, alloc: Shape) -> None:
        group = next(g for g in alloc["Job"]["TaskGroups"] if g["Name"] == alloc["TaskGroup"])
        await self._running.stop(work.alloc_id, min(group["Tasks"][0]["KillTimeout"] / 1e9, self.max_kill_timeout))

    async def _forget(self, work: Work) -> None:
        """Purged or collected: what runs is stopped as any other first."""
        if not work.over and not work.muted:
            work.stopping = True
            await self._running.stop(work.alloc_id, 5.0)
        work.muted = True
        self._work.pop(work.alloc_id, None)
        await self._running.forget(work.alloc_id)

    # --- reports -------------------------------------------------------------------------------------------------

    def _told(self, work: Work, told: dict[str, Any]) -> None:
        if work.muted or work.over:
            return
        before = work.state.get("ClientStatus")
        work.state = {**work.state, **told}
        if "ClientStatus" not in told:
            work.state |= derived(work.state["TaskStates"])
        status = work.state["ClientStatus"]
        slow = not work.reported and status != "failed"
        # An event alone is no news that cannot wait for the next change.
        self._report(work, slow=slow or (status == before and work.reported))

    def _report(self, work: Work, *, slow: bool) -> None:
        loop = asyncio.get_running_loop()
        reports = self._reports.setdefault(work.node_id, Reports())
        reports.waiting[work.alloc_id] = work
        period = TICK * SLOW if slow else TICK
        due = loop.time() if self.prompt else self._began + ((loop.time() - self._began) // period + 1) * period
        if reports.sender is not None and reports.due <= due:
            return
        if reports.sender is not None:
            reports.sender.cancel()
        reports.due = due
        reports.sender = self._tasks.spawn(self._send(work.node_id, due), f"reports of {work.node_id}")

    async def _send(self, node_id: str, due: float) -> None:
        await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))
        reports = self._reports.pop(node_id)
        known = [
            work for work in reports.waiting.values() if work.alloc_id in self._state.allocations and not work.muted
        ]
        if not known or self._state.nodes[node_id]["Status"] == "down":
            return
        with self._state.write() as change:
            keys = []
            for work in known:
                alloc = self._state.allocations[work.alloc_id]
                work.reported = True
                change.allocation(alloc | work.state | {"NetworkStatus": NETWORK}, "AllocationUpdated")
                keys.append((alloc["Namespace"], alloc["JobID"]))
            change.settle(keys, "AllocationUpdated")
            change.node(self._state.nodes[node_id], "AllocationUpdated")

    # --- asked of a node -----------------------------------------------------------------------------------------

    def _known(self, alloc_id: str) -> Work:
        work = self._work.get(alloc_id)
        if work is None or alloc_id not in self._state.allocations:
            raise Refused(404, f'Unknown allocation "{alloc_id}"')
        return work

    async def signal(self, alloc_id: str, task: str, name: str) -> None:
        """Raises Refused. A name that is no signal's is sent as SIGINT, as raw_exec does."""
        work = self._known(alloc_id)
        if task and task != work.task:
            raise Refused(500, "Task not found")
        if (work.state.get("TaskStates") or {}).get(work.task, {}).get("State") != "running":
            raise Refused(500, "Task not running")
        number = name if name in signals.Signals.__members__ else "SIGINT"
        try:
            await self._running.signal(alloc_id, number)
        except KeyError:
            raise Refused(500, "Task not running") from None

    def logs(self, alloc_id: str, task: str, stream: str) -> list[Path]:
        """Files of an output, oldest first. Raises Refused."""
        work = self._known(alloc_id)
        if task != work.task:
            raise Refused(400, f'unknown task name "{task}"')
        return self._running.log_files(alloc_id, stream)

    def mute(self, alloc_id: str) -> None:
        """Nothing more of it is told."""
        if alloc_id in self._work:
            self._work[alloc_id].muted = True

    def is_over(self, alloc_id: str) -> bool:
        """It has ended, whatever the servers know."""
        work = self._work.get(alloc_id)
        return work is None or work.over

    async def lose(self, node_id: str) -> None:
        """The machine is gone: its tasks end, nothing more is told of them."""
        for work in [work for work in self._work.values() if work.node_id == node_id]:
            work.muted = True
            await self._running.lose(work.alloc_id)


def derived(states: Shape) -> Shape:
    """ClientStatus as the client makes it of its tasks' states."""
    tasks = list(states.values())
    if any(task["State"] == "dead" and task["Failed"] for task in tasks):
        return {"ClientStatus": "failed", "ClientDescription": "Failed tasks"}
    if any(task["State"] == "running" for task in tasks):
        return {"ClientStatus": "running", "ClientDescription": "Tasks are running"}
    if any(task["State"] == "pending" for task in tasks):
        return {"ClientStatus": "pending", "ClientDescription": "No tasks have started"}
    return {"ClientStatus": "complete", "ClientDescription": "All tasks have completed"}
