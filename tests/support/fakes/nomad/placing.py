"""Where an allocation goes, or what stands in its way: feasibility, then room, told as the scheduler's metrics."""

from __future__ import annotations

import fnmatch
import itertools
import os
import random
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.support.fakes.nomad.canonical import RESOURCES
from tests.support.fakes.nomad.constraints import device_holds, device_matches, escapes, holds, named, node_value
from tests.support.fakes.nomad.state import TERMINAL, Shape

EMPTY: Final[Shape] = dict.fromkeys(RESOURCES, 0) | {"Devices": None, "NUMA": None, "Networks": None}
"""Resources of nothing."""
TRIES: Final = 200
"""Ports tried."""
WEIGHED: Final = 2
LIKED_WEIGHED: Final = 100
"""Nodes with room that are weighed for a batch job, and for one that likes something of nodes."""
WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
"""One that takes the place of another, which ended, has a higher number than there are."""

_turns = itertools.count(random.randrange(1 << 16))


@dataclass(frozen=True, slots=True)
class Place:
    """A node, and what of it an allocation takes."""

    node: Shape
    resources: Shape
    metrics: Shape


class Exhausted(Exception):
    """A node is fit but full; the message is the dimension."""


class Placing:
    """Placements of one group of a job in one evaluation. `metrics` holds why the last one failed; `classes` and
    `escaped` are what a blocked evaluation keeps."""

    def __init__(self, job: Shape, group: Shape, nodes: Iterable[Shape], allocations: Iterable[Shape]) -> None:
        self._job, self._group = job, group
        self._nodes = [n for n in nodes if fits_job(n, job)]
        self._ready = [n for n in self._nodes if n["Status"] == "ready" and n["SchedulingEligibility"] == "eligible"]
        self._allocations = list(allocations)
        self.classes: dict[str, bool] = {}
        self.escaped = any(escapes(constraint) for constraint in self._constraints())
        self.metrics = self._fresh()

    def _constraints(self) -> list[Mapping[str, Any]]:
        tasks = self._group["Tasks"] or ()
        own = [*(self._job["Constraints"] or ()), *(self._group["Constraints"] or ())]
        return own + [constraint for task in tasks for constraint in task["Constraints"] or ()]

    def _fresh(self) -> Shape:
        available: dict[str, int] = {}
        for node in self._ready:
            available[node["Datacenter"]] = available.get(node["Datacenter"], 0) + 1
        return {
            "AllocationTime": 50_000,
            "ClassExhausted": None,
            "ClassFiltered": None,
            "CoalescedFailures": 0,
            "ConstraintFiltered": None,
            "DimensionExhausted": None,
            "NodePool": self._job["NodePool"],
            "NodesAvailable": available,
            "NodesEvaluated": 0,
            "NodesExhausted": 0,
            "NodesFiltered": 0,
            "NodesInPool": len(self._ready),
            "QuotaExhausted": None,
            "ResourcesExhausted": None,
            "ScoreMetaData": None,
            "Scores": None,
        }

    def feasible(self) -> list[Shape]:
        """Ready nodes that could run it if they were empty; the others are counted in `metrics`."""
        return [node for node in random.sample(self._ready, len(self._ready)) if self._is_feasible(node)]

    def _is_feasible(self, node: Shape) -> bool:
        self.metrics["NodesEvaluated"] += 1
        known = None if self.escaped else self.classes.get(node["ComputedClass"])
        reason = "computed class ineligible" if known is False else self._against(node)
        if known is None:
            self.classes[node["ComputedClass"]] = reason is None
        if reason is not None:
            self.metrics["NodesFiltered"] += 1
            self._count("ConstraintFiltered", reason)
            if node["NodeClass"]:
                self._count("ClassFiltered", node["NodeClass"])
        return reason is None

    def _count(self, what: str, name: str) -> None:
        self.metrics[what] = {**(self.metrics[what] or {}), name: (self.metrics[what] or {}).get(name, 0) + 1}

    def _against(self, node: Shape) -> str | None:
        for constraint in self._job["Constraints"] or ():
            if not holds(constraint, node):
                return named(constraint)
        for task in self._group["Tasks"] or ():
            driver = node["Drivers"].get(task["Driver"])
            if driver is None or not driver["Healthy"]:
                return "missing drivers"
        for constraint in self._constraints()[len(self._job["Constraints"] or ()) :]:
            if not holds(constraint, node):
                return named(constraint)
        for ask in self._asks():
            groups = [g for g in node["NodeResources"]["Devices"] or () if device_matches(ask, g)]
            if sum(sum(i["Healthy"] for i in g["Instances"]) for g in groups) < ask["Count"]:
                return "missing devices"
        return None

    def _asks(self) -> list[Shape]:
        return [ask for task in self._group["Tasks"] or () for ask in task["Resources"]["Devices"] or ()]

    def place(self, nodes: list[Shape] | None = None) -> Place | None:
        """The best place of these nodes (None: of all); None: there is none, and `metrics` says why."""
        self.metrics = self._fresh()
        found: list[tuple[float, Place]] = []
        most = LIKED_WEIGHED if any(self._affinities()) else WEIGHED
        for node in random.sample(self._ready, len(self._ready)):
            if len(found) == most:
                break
            if not self._is_feasible(node):
                continue
            if nodes is not None and all(node["ID"] != other["ID"] for other in nodes):
                continue
            try:
                resources, liking = self._room(node)
            except Exhausted as error:
                self._exhausted(node, str(error))
                continue
            found.append(self._scored(node, resources, liking))
        if not found:
            return None
        return max(found, key=lambda each: each[0])[1]

    def took(self, alloc: Shape) -> None:
        """It counts from now on."""
        self._allocations.append(alloc)

    def freed(self, ids: set[str]) -> None:
        """These are not reckoned with any more."""
        self._allocations = [a for a in self._allocations if a["ID"] not in ids]

    def _exhausted(self, node: Shape, dimension: str) -> None:
        self.metrics["NodesExhausted"] += 1
        self._count("DimensionExhausted", dimension)
        if node["NodeClass"]:
            self._count("ClassExhausted", node["NodeClass"])
        name = {"cpu": "CPU", "memory": "MemoryMB"}.get(dimension)
        if name is None and dimension != "disk":
            return
        exhausted = self.metrics["ResourcesExhausted"] or {}
        for task in self._group["Tasks"]:
            exhausted[task["Name"]] = EMPTY | ({name: task["Resources"][name]} if name else {})
        self.metrics["ResourcesExhausted"] = exhausted

    def _scored(self, node: Shape, resources: Shape, liking: float | None) -> tuple[float, Place]:
        used, room = self._used(node), capacity(node)
        own = taken(resources)
        free = [1 - (used[name] + own[name]) / max(room[name], 1) for name in ("cpu", "memory")]
        scores = {
            "binpack": max(0.0, min(1.0, (20 - sum(10**part for part in free)) / 18)),
            "job-anti-affinity": 0.0,
            "node-reschedule-penalty": 0.0,
            "node-affinity": self._affinity(node),
        }
        if liking is not None:
            scores["devices"] = liking
        counted = [value for name, value in scores.items() if value or name in {"binpack", "devices"}]
        score = sum(counted) / len(counted)
        self.metrics["ScoreMetaData"] = [
            {"NodeID": node["ID"], "NormScore": score, "Scores": scores},
            *(self.metrics["ScoreMetaData"] or ()),
        ]
        return score, Place(node, resources, self.metrics)

    def _affinity(self, node: Shape) -> float:
        return _weighted([(a, holds(a, node)) for a in self._affinities()])

    def _affinities(self) -> list[Mapping[str, Any]]:
        tasks = self._group["Tasks"] or ()
        all_of = [*(self._job["Affinities"] or ()), *(self._group["Affinities"] or ())]
        return all_of + [affinity for task in tasks for affinity in task["Affinities"] or ()]

    def _used(self, node: Shape) -> dict[str, int]:
        total = {"cpu": 0, "memory": 0, "disk": 0}
        for alloc in self._on(node):
            for name, value in taken(alloc["AllocatedResources"]).items():
                total[name] += value
        return total

    def _on(self, node: Shape) -> list[Shape]:
        """Only what a client has reported as ended has given back what it took."""
        here = [a for a in self._allocations if a["NodeID"] == node["ID"]]
        return [a for a in here if a["ClientStatus"] not in TERMINAL]

    def _room(self, node: Shape) -> tuple[Shape, float | None]:
        """What it would take of the node, and how well it likes the devices. Raises Exhausted."""
        networks, ports = self._ports(node)
        devices, liking = self._devices(node)
        tasks = {
            task["Name"]: {
                "Cpu": {"CpuShares": task["Resources"]["CPU"], "ReservedCores": None},
                "Devices": devices.get(task["Name"]),
                "Memory": {
                    "MemoryMB": task["Resources"]["MemoryMB"],
                    "MemoryMaxMB": task["Resources"]["MemoryMaxMB"],
                },
                "Networks": None,
            }
            for task in self._group["Tasks"]
        }
        shared = {"DiskMB": self._group["EphemeralDisk"]["SizeMB"], "Networks": networks, "Ports": ports}
        lifecycles = {task["Name"]: task["Lifecycle"] for task in self._group["Tasks"]}
        resources = {"Shared": shared, "TaskLifecycles": lifecycles, "Tasks": tasks}
        used, room, own = self._used(node), capacity(node), taken(resources)
        for name in ("cpu", "memory", "disk"):
            if used[name] + own[name] > room[name]:
                raise Exhausted(name)
        return resources, liking

    def _ports(self, node: Shape) -> tuple[list[Shape] | None, list[Shape] | None]:
        networks = self._group["Networks"]
        if not networks:
            return None, None
        address = node["Attributes"]["unique.network.ip-address"]
        busy = {p["Value"] for a in self._on(node) for p in a["AllocatedResources"]["Shared"]["Ports"] or ()}
        dynamic = []
        for port in networks[0].get("DynamicPorts") or ():
            value = _free_port(node["NodeResources"], address, busy)
            busy.add(value)
            dynamic.append({"HostNetwork": "default", "Label": port["Label"], "Value": value})
        network: Shape = {"IP": address, "Mode": networks[0].get("Mode") or "host"}
        if dynamic:
            network["DynamicPorts"] = dynamic
        ports = [{"HostIP": address, "Label": p["Label"], "Value": p["Value"]} for p in dynamic]
        return [network], ports or None

    def _devices(self, node: Shape) -> tuple[dict[str, list[Shape]], float | None]:
        used = {
            identifier
            for alloc in self._on(node)
            for task in alloc["AllocatedResources"]["Tasks"].values()
            for device in task["Devices"] or ()
            for identifier in device["DeviceIDs"]
        }
        given: dict[str, list[Shape]] = {}
        likings: list[float] = []
        for task in self._group["Tasks"]:
            for ask in task["Resources"]["Devices"] or ():
                group, free = _best_devices(node, ask, used)
                chosen = free[: ask["Count"]]
                used.update(chosen)
                device = {"DeviceIDs": chosen, "Name": group["Name"], "Type": group["Type"], "Vendor": group["Vendor"]}
                given.setdefault(task["Name"], []).append(device)
                if ask["Affinities"]:
                    likings.append(_weighted([(a, device_holds(a, group)) for a in ask["Affinities"]]))
        return given, sum(likings) / len(likings) if likings else None


def _best_devices(node: Shape, ask: Shape, used: set[str]) -> tuple[Shape, list[str]]:
    """All devices of an ask come from one group; which of those liked as much, and which of its devices, is left to
    chance. Raises Exhausted."""
    fit: list[tuple[float, float, Shape, list[str]]] = []
    for group in node["NodeResources"]["Devices"] or ():
        free = [i["ID"] for i in group["Instances"] if i["Healthy"] and i["ID"] not in used]
        if device_matches(ask, group) and len(free) >= ask["Count"]:
            liking = _weighted([(a, device_holds(a, group)) for a in ask["Affinities"] or ()])
            fit.append((liking, random.random(), group, random.sample(free, len(free))))
    if not fit:
        raise Exhausted("devices: no devices match request")
    _, _, group, free = max(fit, key=lambda each: each[:2])
    return group, free


def _weighted(affinities: list[tuple[Mapping[str, Any], bool]]) -> float:
    weights = [int(affinity.get("Weight") or 50) for affinity, _ in affinities]
    total = sum(abs(weight) for weight in weights)
    matched = sum(weight for weight, (_, held) in zip(weights, affinities, strict=True) if held)
    return matched / total if total else 0.0


def _free_port(resources: Shape, address: str, busy: set[int]) -> int:
    """One nobody listens on: what is started here is really started. Nobody listens yet on those given just before,
    also by other fakes: they come in turn, and each worker of a test run has its own. Raises Exhausted."""
    first, last = int(resources["MinDynamicPort"]), int(resources["MaxDynamicPort"])
    own = (last - first + 1) // WORKERS
    for turn in itertools.islice(_turns, TRIES):
        port = first + WORKER * own + turn % own
        if port in busy:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        return port
    raise Exhausted("network: dynamic port selection failed")


def capacity(node: Shape) -> dict[str, int]:
    """What may be given away of a node."""
    have, kept = node["NodeResources"], node["ReservedResources"]
    return {
        "cpu": have["Cpu"]["CpuShares"] - kept["Cpu"]["CpuShares"],
        "memory": have["Memory"]["MemoryMB"] - kept["Memory"]["MemoryMB"],
        "disk": have["Disk"]["DiskMB"] - kept["Disk"]["DiskMB"],
    }


def taken(resources: Shape) -> dict[str, int]:
    """By an allocation."""
    tasks = resources["Tasks"].values()
    return {
        "cpu": sum(task["Cpu"]["CpuShares"] for task in tasks),
        "memory": sum(task["Memory"]["MemoryMB"] for task in tasks),
        "disk": resources["Shared"]["DiskMB"],
    }


def fits_job(node: Shape, job: Shape) -> bool:
    """By node pool and data centre."""
    pool = job["NodePool"] in {"all", node["NodePool"]}
    return pool and any(
        fnmatch.fnmatchcase(node_value("${node.datacenter}", node) or "", d) for d in job["Datacenters"]
    )
