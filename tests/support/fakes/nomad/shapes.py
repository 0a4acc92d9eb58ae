"""Nodes, evaluations and allocations as they begin, and their stubs in lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.support.fakes.nomad.constraints import computed_class
from tests.support.fakes.nomad.placing import EMPTY, Place
from tests.support.fakes.nomad.state import Shape, State, new_id, now

VERSION: Final = "2.0.5"
SIGNALS: Final = "SIGABRT,SIGALRM,SIGCONT,SIGHUP,SIGINT,SIGKILL,SIGQUIT,SIGSTOP,SIGTERM,SIGTSTP,SIGUSR1,SIGUSR2"
TIME: Final = "2026-01-01T00:00:00Z"
UPDATES: Final = (
    "Canary",
    "DestructiveUpdate",
    "Disconnect",
    "Ignore",
    "InPlaceUpdate",
    "Migrate",
    "Place",
    "Preemptions",
    "Reconnect",
    "RescheduleLater",
    "RescheduleNow",
    "Stop",
)
_NODE_STUB: Final = (
    "CreateIndex",
    "Datacenter",
    "Drain",
    "Drivers",
    "HostVolumes",
    "ID",
    "LastDrain",
    "ModifyIndex",
    "Name",
    "NodeClass",
    "NodePool",
    "SchedulingEligibility",
    "Status",
    "StatusDescription",
)
_JOB_STUB: Final = (
    "CreateIndex",
    "Datacenters",
    "ID",
    "JobModifyIndex",
    "ModifyIndex",
    "Multiregion",
    "Name",
    "Namespace",
    "NodePool",
    "ParentID",
    "Priority",
    "Status",
    "StatusDescription",
    "Stop",
    "SubmitTime",
    "Type",
)
_ALLOC_STUB: Final = (
    "ClientDescription",
    "ClientStatus",
    "CreateIndex",
    "CreateTime",
    "DesiredStatus",
    "EvalID",
    "ID",
    "JobID",
    "ModifyIndex",
    "ModifyTime",
    "Name",
    "Namespace",
    "NodeID",
    "NodeName",
    "TaskGroup",
    "TaskStates",
)
TRANSITION: Final = {
    "ForceReschedule": None,
    "Migrate": None,
    "MigrateDisablePlacement": None,
    "NoShutdownDelay": None,
    "Reschedule": None,
}

NO_VALUE: Final[Shape] = {"Bool": None, "Float": None, "Int": None, "String": None, "Unit": ""}
"""An attribute of devices."""


def device_group(
    name: str,
    ids: Sequence[str],
    *,
    vendor: str = "nvidia",
    kind: str = "gpu",
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    healthy: bool = True,
) -> Shape:
    """One entry of `NodeResources.Devices`. `attributes`: `{"memory": {"Int": 81559, "Unit": "MiB"}}`."""
    return {
        "Attributes": {key: NO_VALUE | dict(value) for key, value in (attributes or {}).items()} or None,
        "Instances": [{"HealthDescription": "", "Healthy": healthy, "ID": each, "Locality": None} for each in ids],
        "Name": name,
        "Type": kind,
        "Vendor": vendor,
    }


def make_node(
    name: str,
    *,
    cpu: int = 4000,
    memory: int = 8192,
    disk: int = 50_000,
    devices: Sequence[Shape] = (),
    drivers: Sequence[str] = ("raw_exec",),
    datacenter: str = "dc1",
    pool: str = "default",
    node_class: str = "",
    meta: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Shape:
    """A node as `GET /v1/node/:id` tells it. MHz and MiB. `attributes`: more of them, and other values."""
    attrs = {
        "kernel.name": "linux",
        "kernel.arch": "x86_64",
        "cpu.arch": "amd64",
        "os.name": "debian",
        "os.signals": SIGNALS,
        "nomad.version": VERSION,
        "nomad.service_discovery": "true",
        "unique.hostname": name,
        "unique.network.ip-address": "127.0.0.1",
        **{f"driver.{driver}": "1" for driver in drivers},
        **(attributes or {}),
    }
    health = {"Attributes": {}, "Detected": True, "HealthDescription": "Healthy", "Healthy": True, "UpdateTime": TIME}
    node: Shape = {
        "Attributes": attrs,
        "CSIControllerPlugins": {},
        "CSINodePlugins": {},
        "CgroupParent": "nomad.slice",
        "CreateIndex": 0,
        "Datacenter": datacenter,
        "Drain": False,
        "DrainStrategy": None,
        "Drivers": {driver: dict(health) for driver in drivers},
        "Events": [],
        "HTTPAddr": "127.0.0.1:4646",
        "HostNetworks": None,
        "HostVolumes": {},
        "ID": new_id(),
        "LastAllocUpdateIndex": 0,
        "LastDrain": None,
        "LastMissedHeartbeatIndex": 0,
        "Links": {},
        "Meta": dict(meta or {}),
        "ModifyIndex": 0,
        "Name": name,
        "NodeClass": node_class,
        "NodeMaxAllocs": 0,
        "NodePool": pool,
        "NodeResources": _resources(cpu, memory, disk, devices),
        "ReservedResources": {
            "Cpu": {"CpuShares": 0, "ReservedCpuCores": None},
            "Disk": {"DiskMB": 0},
            "Memory": {"MemoryMB": 0},
            "Networks": {"ReservedHostPorts": ""},
        },
        "SchedulingEligibility": "eligible",
        "SecretID": "",
        "Status": "ready",
        "StatusDescription": "",
        "StatusUpdatedAt": now() // 1_000_000_000,
        "TLSEnabled": False,
    }
    return node | {"ComputedClass": computed_class(node)}


def _resources(cpu: int, memory: int, disk: int, devices: Sequence[Shape]) -> Shape:
    return {
        "Cpu": {"CpuShares": cpu, "ReservableCpuCores": None, "TotalCpuCores": max(cpu // 2000, 1)},
        "Devices": list(devices) or None,
        "Disk": {"DiskMB": disk},
        "MaxDynamicPort": 32000,
        "Memory": {"MemoryMB": memory},
        "MinDynamicPort": 20000,
        "Networks": [{"CIDR": "127.0.0.1/32", "Device": "lo", "IP": "127.0.0.1", "MBits": 1000, "Mode": "host"}],
    }


def make_evaluation(job: Shape, trigger: str, **more: Any) -> Shape:
    """A pending one."""
    created = now()
    return {
        "CreateTime": created,
        "ID": new_id(),
        "JobID": job["ID"],
        "JobModifyIndex": job["JobModifyIndex"],
        "ModifyTime": created,
        "Namespace": job["Namespace"],
        "Priority": job["Priority"],
        "Status": "pending",
        "TriggeredBy": trigger,
        "Type": job["Type"],
    } | more


def make_allocation(job: Shape, group: Shape, number: int, evaluation: str, place: Place) -> Shape:
    """As the plan's result has it."""
    resources, created = place.resources, now()
    tasks = {task["Name"]: dict(task["Resources"]) | {"Devices": None} for task in group["Tasks"]}
    disk, networks = resources["Shared"]["DiskMB"], resources["Shared"]["Networks"]
    total = {name: sum(task[name] for task in tasks.values()) for name in ("CPU", "MemoryMB")}
    return {
        "AllocatedResources": resources,
        "ClientStatus": "pending",
        "CreateTime": created,
        "DesiredStatus": "run",
        "EvalID": evaluation,
        "ID": new_id(),
        "Job": job,
        "JobID": job["ID"],
        "Metrics": place.metrics,
        "ModifyTime": created,
        "Name": f"{job['ID']}.{group['Name']}[{number}]",
        "Namespace": job["Namespace"],
        "NodeID": place.node["ID"],
        "NodeName": place.node["Name"],
        "Resources": EMPTY | total | {"DiskMB": disk, "MemoryMaxMB": total["MemoryMB"], "Networks": networks},
        "SharedResources": EMPTY | {"DiskMB": disk, "Networks": networks},
        "TaskGroup": group["Name"],
        "TaskResources": tasks,
    }


def job_stub(job: Shape, state: State, *, meta: bool) -> Shape:
    """Of `/v1/jobs`."""
    stub = {name: job[name] for name in _JOB_STUB}
    stub |= {
        "JobSummary": state.summary((job["Namespace"], job["ID"])),
        "ParameterizedJob": job["ParameterizedJob"] is not None and not job["Dispatched"],
        "Periodic": job["Periodic"] is not None,
    }
    return stub | {"Meta": job["Meta"]} if meta and job["Meta"] else stub


def allocation_stub(alloc: Shape, *, resources: bool) -> Shape:
    """Of `/v1/allocations` and `/v1/job/:id/allocations`."""
    stub = {name: alloc.get(name, "") for name in _ALLOC_STUB}
    stub |= {
        "TaskStates": alloc.get("TaskStates"),
        "DeploymentStatus": None,
        "DesiredDescription": alloc.get("DesiredDescription", ""),
        "DesiredTransition": alloc.get("DesiredTransition", TRANSITION),
        "FollowupEvalID": "",
        "JobType": alloc["Job"]["Type"],
        "JobVersion": alloc["Job"]["Version"],
        "NextAllocation": alloc.get("NextAllocation", ""),
        "PreemptedAllocations": None,
        "PreemptedByAllocation": "",
        "RescheduleTracker": None,
    }
    return stub | {"AllocatedResources": alloc["AllocatedResources"]} if resources else stub


def node_stub(node: Shape, *, resources: bool) -> Shape:
    """Of `/v1/nodes`."""
    stub = {name: node[name] for name in _NODE_STUB}
    stub |= {"Address": node["Attributes"]["unique.network.ip-address"], "Version": VERSION}
    if resources:
        stub |= {name: node[name] for name in ("NodeResources", "ReservedResources")}
    return stub
