"""What the fake Nomad's servers agree on: tables under one index that only goes up, and the events of each change.

Objects in the tables are never changed, only replaced, so what an event carries stays what it was.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

Shape = dict[str, Any]
JobKey = tuple[str, str]
"""Namespace, id."""

RING: Final = 100
"""Lines of the event stream a server keeps (`event_buffer_size`)."""
VERSIONS: Final = 6
"""Versions kept of a job (`job_tracked_versions`), tagged ones apart."""
TERMINAL: Final = frozenset({"complete", "failed", "lost"})
"""Client statuses after which nothing runs."""
LIVE_EVALUATIONS: Final = frozenset({"pending", "blocked"})


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """An answer that is no success: `text` as Nomad words it."""

    status: int
    text: str


def new_id() -> str:
    """As ids of evaluations, allocations and nodes are."""
    return str(uuid.uuid4())


def now() -> int:
    """Nanoseconds."""
    return time.time_ns()


def is_over(alloc: Shape) -> bool:
    """No capacity will be given to it any more; its task may still be ending."""
    return alloc["DesiredStatus"] != "run" or alloc["ClientStatus"] in TERMINAL


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the event stream."""

    index: int
    events: tuple[Shape, ...]


@dataclass
class State:
    """All tables. Changes go through `write`."""

    index: int = 4
    jobs: dict[JobKey, Shape] = field(default_factory=dict)
    versions: dict[JobKey, list[Shape]] = field(default_factory=dict)
    """Newest first."""
    submissions: dict[tuple[str, str, int], Shape] = field(default_factory=dict)
    summaries: dict[JobKey, int] = field(default_factory=dict)
    """Index of the last change of a summary, which is counted when it is asked for."""
    queued: dict[JobKey, Shape] = field(default_factory=dict)
    evaluations: dict[str, Shape] = field(default_factory=dict)
    allocations: dict[str, Shape] = field(default_factory=dict)
    nodes: dict[str, Shape] = field(default_factory=dict)
    namespaces: dict[str, Shape] = field(default_factory=dict)
    policies: dict[str, Shape] = field(default_factory=dict)
    tokens: dict[str, Shape] = field(default_factory=dict)
    """By accessor."""
    roles: dict[str, Shape] = field(default_factory=dict)
    methods: dict[str, Shape] = field(default_factory=dict)
    oversubscription: bool = False
    """Of memory: tasks may have a limit above what is reserved."""
    tables: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Index of the last change of each."""
    ring: deque[Line] = field(default_factory=lambda: deque(maxlen=RING))
    live: dict[str, Shape] = field(default_factory=dict)
    """Evaluations that are pending or blocked."""
    moved: set[str] = field(default_factory=set)
    """Allocations that nodes have to look at."""
    room: set[str] = field(default_factory=set)
    """Nodes that may have room they had not before."""
    _waiting: set[asyncio.Future[None]] = field(default_factory=set)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called after each change: schedulers and nodes, which look at what there is to do."""

    def write(self) -> Write:
        """A change under one new index: `with state.write() as change: …`. Nothing of it may be awaited."""
        return Write(self)

    async def changed(self) -> None:
        """Returns after the next change."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def told(self) -> None:
        """Wake whoever waits for a change."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)
        for watcher in self.watchers:
            watcher()

    def allocations_of(self, key: JobKey) -> list[Shape]:
        """Oldest first."""
        return [a for a in self.allocations.values() if (a["Namespace"], a["JobID"]) == key]

    def evaluations_of(self, key: JobKey) -> list[Shape]:
        """Oldest first."""
        return [e for e in self.evaluations.values() if (e["Namespace"], e["JobID"]) == key]

    def children_of(self, key: JobKey) -> list[Shape]:
        """Dispatched ones."""
        return [j for (namespace, _), j in self.jobs.items() if namespace == key[0] and j["ParentID"] == key[1]]

    def status_of(self, key: JobKey) -> str:
        """What the job's status should read (`getJobStatus` of Nomad's state store)."""
        job = self.jobs[key]
        if job["ParameterizedJob"] is not None and not job["Dispatched"]:
            return "dead" if job["Stop"] else "running"
        allocations, evaluations = self.allocations_of(key), self.evaluations_of(key)
        if any(not is_over(alloc) for alloc in allocations):
            return "running"
        if any(evaluation["Status"] in LIVE_EVALUATIONS for evaluation in evaluations):
            return "pending"
        return "dead" if evaluations or allocations or job["Stop"] else "pending"

    def summary(self, key: JobKey) -> Shape:
        """Of `/v1/job/:id/summary`."""
        job = self.jobs[key]
        groups = {group["Name"]: dict.fromkeys(_COUNTS, 0) for group in job["TaskGroups"]}
        for alloc in self.allocations_of(key):
            name = _COUNT_OF[alloc["ClientStatus"]]
            groups.setdefault(alloc["TaskGroup"], dict.fromkeys(_COUNTS, 0))[name] += 1
        for group, count in self.queued.get(key, {}).items():
            groups.setdefault(group, dict.fromkeys(_COUNTS, 0))["Queued"] = count
        children = [child["Status"] for child in self.children_of(key)]
        return {
            "Children": {name: children.count(name.lower()) for name in ("Dead", "Pending", "Running")},
            "CreateIndex": job["CreateIndex"],
            "JobID": job["ID"],
            "ModifyIndex": self.summaries[key],
            "Namespace": job["Namespace"],
            "Summary": groups,
        }


_COUNTS: Final = ("Complete", "Failed", "Lost", "Queued", "Running", "Starting", "Unknown")
_COUNT_OF: Final = {
    "pending": "Starting",
    "running": "Running",
    "complete": "Complete",
    "failed": "Failed",
    "lost": "Lost",
    "unknown": "Unknown",
}


class Write:
    """One change. `index` is its own."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.index = state.index + 1
        self._events: list[Shape] = []

    def __enter__(self) -> Self:
        self.state.index = self.index
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events:
            self.state.ring.append(Line(self.index, tuple(self._events)))
        self.state.told()

    def event(
        self, topic: str, kind: str, key: str, namespace: str, payload: Shape, filters: list[str] | None = None
    ) -> None:
        """Tell the stream."""
        self._events.append(
            {
                "FilterKeys": filters,
                "Index": self.index,
                "Key": key,
                "Namespace": namespace,
                "Payload": payload,
                "Topic": topic,
                "Type": kind,
            }
        )

    def job(self, job: Shape, kind: str, *, version: bool = False) -> Shape:
        """Keep a job. `version`: its specification is a new one."""
        key = (job["Namespace"], job["ID"])
        known = self.state.jobs.get(key)
        stored = job | {
            "CreateIndex": known["CreateIndex"] if known else self.index,
            "ModifyIndex": self.index,
            "JobModifyIndex": self.index if version or known is None else known["JobModifyIndex"],
        }
        self.state.jobs[key] = stored
        self.state.tables["jobs"] = self.index
        if version or known is None:
            self._kept(key, stored)
            self.summary(key)
        packed = stored | {"Payload": _packed(stored["Payload"])} if stored["Payload"] else stored
        self.event("Job", kind, job["ID"], job["Namespace"], {"Job": packed})
        if job["ParentID"] and (known is None or known["Status"] != stored["Status"]):
            self.summary((job["Namespace"], job["ParentID"]))
        return stored

    def _kept(self, key: JobKey, job: Shape) -> None:
        versions = [job, *self.state.versions.get(key, [])]
        self.state.versions[key] = [v for n, v in enumerate(versions) if n < VERSIONS or v["VersionTag"]]
        self.state.tables["job_version"] = self.index

    def purged(self, key: JobKey, kind: str = "JobDeregistered") -> None:
        """The job, its versions and its allocations go."""
        job = self.state.jobs.pop(key)
        for table in (self.state.versions, self.state.summaries, self.state.queued):
            table.pop(key, None)
        self.forgotten(allocations=[alloc["ID"] for alloc in self.state.allocations_of(key)])
        self.state.tables["jobs"] = self.state.tables["job_version"] = self.state.tables["job_summary"] = self.index
        self.event("Job", kind, job["ID"], job["Namespace"], {"Deleted": True, "Job": job})

    def forgotten(self, *, allocations: Iterable[str] = (), evaluations: Iterable[str] = ()) -> None:
        """Nobody is told of these but by the lists."""
        for each in allocations:
            self.state.room.add(self.state.allocations.pop(each)["NodeID"])
            self.state.moved.add(each)
            self.state.tables["allocs"] = self.index
        for each in evaluations:
            del self.state.evaluations[each]
            self.state.live.pop(each, None)
            self.state.tables["evals"] = self.index

    def summary(self, key: JobKey) -> None:
        """It counts something else now."""
        if key in self.state.jobs:
            self.state.summaries[key] = self.state.tables["job_summary"] = self.index

    def evaluation(self, evaluation: Shape, kind: str = "EvaluationUpdated") -> Shape:
        """Keep an evaluation."""
        known = self.state.evaluations.get(evaluation["ID"])
        created = known["CreateIndex"] if known else self.index
        stored = evaluation | {"CreateIndex": created, "ModifyIndex": self.index}
        self.state.evaluations[stored["ID"]] = stored
        self.state.tables["evals"] = self.index
        if stored["Status"] in LIVE_EVALUATIONS:
            self.state.live[stored["ID"]] = stored
        else:
            self.state.live.pop(stored["ID"], None)
        if (queued := stored.get("QueuedAllocations")) is not None:
            key = (stored["Namespace"], stored["JobID"])
            if self.state.queued.get(key, {}) != queued:
                self.state.queued[key] = queued
                self.summary(key)
        told = stored["JobID"], stored.get("DeploymentID", "")
        self.event("Evaluation", kind, stored["ID"], stored["Namespace"], {"Evaluation": stored}, list(told))
        return stored

    def allocation(self, alloc: Shape, kind: str) -> Shape:
        """Keep an allocation; all but what its client says moves `AllocModifyIndex` too."""
        known = self.state.allocations.get(alloc["ID"])
        stored = alloc | {
            "CreateIndex": known["CreateIndex"] if known else self.index,
            "ModifyIndex": self.index,
            "ModifyTime": now(),
            "AllocModifyIndex": alloc["AllocModifyIndex"] if kind == "AllocationUpdated" and known else self.index,
        }
        self.state.allocations[stored["ID"]] = stored
        self.state.tables["allocs"] = self.index
        if kind != "AllocationUpdated":
            self.state.moved.add(stored["ID"])
        elif stored["ClientStatus"] in TERMINAL:
            self.state.room.add(stored["NodeID"])
        if known is None or known["ClientStatus"] != stored["ClientStatus"]:
            self.summary((stored["Namespace"], stored["JobID"]))
        told = {name: value for name, value in stored.items() if name != "Job"}
        self.event("Allocation", kind, stored["ID"], stored["Namespace"], {"Allocation": told}, [stored["JobID"], ""])
        return stored

    def node(self, node: Shape, kind: str) -> Shape:
        """Keep a node. What its allocations do is told of it, but does not change it."""
        if kind == "AllocationUpdated":
            stored = node | {"LastAllocUpdateIndex": self.index}
        else:
            created = self.state.nodes.get(node["ID"], {}).get("CreateIndex", self.index)
            stored = node | {"CreateIndex": created, "ModifyIndex": self.index}
            self.state.tables["nodes"] = self.index
        self.state.nodes[node["ID"]] = stored
        self.event("Node", kind, node["ID"], "", {"Node": stored})
        return stored

    def settle(self, keys: Iterable[JobKey], kind: str) -> None:
        """Statuses of jobs that follow from this change."""
        for key in dict.fromkeys(keys):
            job = self.state.jobs.get(key)
            if job is not None and (status := self.state.status_of(key)) != job["Status"]:
                self.job(job | {"Status": status}, kind)


def _packed(payload: str) -> str:
    """As events carry a payload: compressed (Snappy, here one literal)."""
    data = base64.b64decode(payload)
    length, head = len(data), bytearray()
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    size = len(data) - 1
    head += bytes([size << 2]) if size < 60 else bytes([61 << 2]) + size.to_bytes(2, "little")
    return base64.b64encode(bytes(head) + data).decode()
