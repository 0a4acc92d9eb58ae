"""What is kept of Nomad's jobs, allocations, evaluations and nodes: out of lists, answers and events alike, where
fields without a value may be missing, null or empty. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from modalnomad.hashicorp.nomad.api import Shape
from modalnomad.model.replica import ReplicaKey, TcpAddress
from modalnomad.render.cluster import META_REVISION, PORT, TASK, key_of

NANO: Final = 1e-9
"""Nomad's times are Unix times in nanoseconds."""
GPU: Final = "gpu"
"""Type of a device."""


@dataclass(frozen=True, slots=True)
class Job:
    """A parent or a child."""

    id: str
    namespace: str
    parent: str
    """Of a dispatched child; empty: none."""
    parameterized: bool
    stopped: bool
    """By somebody; a job whose work is done is not."""
    status: str
    meta: Mapping[str, str]
    submitted_at: float
    created: int
    """Raft index."""
    index: int
    """Of its last change."""
    key: ReplicaKey | None
    """The replica a child is; None: none of ours."""

    @property
    def name(self) -> str:
        """As `world.job_name`."""
        return f"{self.namespace}\n{self.id}"

    @property
    def revision(self) -> str:
        """Empty: none of ours."""
        return self.meta.get(META_REVISION, "")


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One of a ring of ten."""

    kind: str
    """`Started`, `Terminated`, `Driver Failure` …"""
    message: str
    details: Mapping[str, str]
    time: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """A child with a place on a node."""

    id: str
    job: str
    namespace: str
    node: str
    node_name: str
    client: str
    """pending, running, complete, failed, lost, unknown."""
    desired: str
    """run, stop, evict."""
    address: TcpAddress | None
    created: int
    """Raft index."""
    index: int
    created_at: float
    modified_at: float
    task_state: str = ""
    """pending, running, dead; empty: its node has not reported it yet."""
    task_failed: bool = False
    started_at: float = 0.0
    events: tuple[TaskEvent, ...] = ()

    @property
    def alive(self) -> bool:
        """As far as its node last said."""
        return self.client in {"pending", "running"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One look of the scheduler at a job."""

    id: str
    job: str
    namespace: str
    status: str
    """pending, complete, failed, canceled, blocked."""
    description: str
    blocked: str
    """Id of the evaluation that waits for room; empty: none."""
    failed: Shape | None
    """Why no place was found (`FailedTGAllocs` of the only group); None: it was."""
    created: int
    index: int
    time: float


@dataclass(frozen=True, slots=True)
class Node:
    """A machine."""

    id: str
    name: str
    status: str
    """ready, down, disconnected, initializing."""
    eligible: bool
    draining: bool
    """It is being emptied, or was and takes nothing new yet."""
    index: int
    pool: str = ""
    datacenter: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What a replica could have of it when it is empty: `cpu` MHz, `memory` MiB, `cores`, `gpus` that are well."""

    @property
    def lost(self) -> bool:
        """Nobody knows what runs there; Nomad ends it when it comes back."""
        return self.status in {"down", "disconnected"}


def job_of(shape: Shape) -> Job:
    """Of a stub, a job or an event."""
    meta = {str(name): str(value) for name, value in (shape.get("Meta") or {}).items()}
    parent = str(shape.get("ParentID") or "")
    return Job(
        id=str(shape["ID"]),
        namespace=str(shape.get("Namespace") or "default"),
        parent=parent,
        parameterized=bool(shape.get("ParameterizedJob")) and not parent,
        stopped=bool(shape.get("Stop")),
        status=str(shape.get("Status") or ""),
        meta=meta,
        submitted_at=float(shape.get("SubmitTime") or 0) * NANO,
        created=int(shape.get("CreateIndex") or 0),
        index=int(shape.get("ModifyIndex") or 0),
        key=key_of(meta) if parent else None,
    )


def allocation_of(shape: Shape) -> Allocation:
    """Of a stub, an allocation or an event."""
    task = (shape.get("TaskStates") or {}).get(TASK) or {}
    events = tuple(map(_task_event, task.get("Events") or ()))
    return Allocation(
        id=str(shape["ID"]),
        job=str(shape["JobID"]),
        namespace=str(shape.get("Namespace") or "default"),
        node=str(shape.get("NodeID") or ""),
        node_name=str(shape.get("NodeName") or ""),
        client=str(shape.get("ClientStatus") or ""),
        desired=str(shape.get("DesiredStatus") or "run"),
        address=_address(shape.get("AllocatedResources") or {}),
        created=int(shape.get("CreateIndex") or 0),
        index=int(shape.get("ModifyIndex") or 0),
        created_at=float(shape.get("CreateTime") or 0) * NANO,
        modified_at=float(shape.get("ModifyTime") or 0) * NANO,
        task_state=str(task.get("State") or ""),
        task_failed=bool(task.get("Failed")),
        started_at=next((event.time for event in events if event.kind == "Started"), 0.0),
        events=events,
    )


def evaluation_of(shape: Shape) -> Evaluation:
    """Of a list, an answer or an event."""
    failed = shape.get("FailedTGAllocs") or {}
    return Evaluation(
        id=str(shape["ID"]),
        job=str(shape.get("JobID") or ""),
        namespace=str(shape.get("Namespace") or "default"),
        status=str(shape.get("Status") or ""),
        description=str(shape.get("StatusDescription") or ""),
        blocked=str(shape.get("BlockedEval") or ""),
        failed=next(iter(failed.values()), None),
        created=int(shape.get("CreateIndex") or 0),
        index=int(shape.get("ModifyIndex") or 0),
        time=float(shape.get("ModifyTime") or 0) * NANO,
    )


def node_of(shape: Shape) -> Node:
    """Of a stub, a node or an event."""
    drain = bool(shape.get("Drain")) or bool(shape.get("DrainStrategy"))
    last = (shape.get("LastDrain") or {}).get("Status") or ""
    eligible = shape.get("SchedulingEligibility") != "ineligible"
    return Node(
        id=str(shape["ID"]),
        name=str(shape.get("Name") or ""),
        status=str(shape.get("Status") or ""),
        eligible=eligible,
        draining=drain or (not eligible and last in {"draining", "complete"}),
        index=int(shape.get("ModifyIndex") or 0),
        pool=str(shape.get("NodePool") or ""),
        datacenter=str(shape.get("Datacenter") or ""),
        resources=_usable(shape),
    )


def _task_event(shape: Shape) -> TaskEvent:
    details = {str(name): str(value) for name, value in (shape.get("Details") or {}).items()}
    return TaskEvent(
        kind=str(shape.get("Type") or ""),
        message=str(shape.get("DisplayMessage") or shape.get("Message") or ""),
        details=details,
        time=float(shape.get("Time") or 0) * NANO,
    )


def _address(resources: Shape) -> TcpAddress | None:
    for port in (resources.get("Shared") or {}).get("Ports") or ():
        if port.get("Label") == PORT:
            return TcpAddress(str(port["HostIP"]), int(port["Value"]))
    return None


def _usable(shape: Shape) -> dict[str, float]:
    has, kept = shape.get("NodeResources") or {}, shape.get("ReservedResources") or {}
    processor, taken = has.get("Cpu") or {}, kept.get("Cpu") or {}
    return {
        "cpu": float(processor.get("CpuShares") or 0) - float(taken.get("CpuShares") or 0),
        "memory": float((has.get("Memory") or {}).get("MemoryMB") or 0)
        - float((kept.get("Memory") or {}).get("MemoryMB") or 0),
        "cores": float(len(processor.get("ReservableCpuCores") or ()) - len(taken.get("ReservedCpuCores") or ())),
        "gpus": float(sum(map(_well, has.get("Devices") or ()))),
    }


def _well(device: Shape) -> int:
    """How many of them may be given, if it is a GPU."""
    return sum(bool(each.get("Healthy")) for each in device.get("Instances") or ()) if device.get("Type") == GPU else 0
