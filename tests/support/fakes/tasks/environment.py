"""A task's environment and what stands for `${…}`, as Nomad 2.0.5's client makes them. Pure.

Two kinds of interpolation (both measured): in Env, services and artifacts, `${name}` of a variable or of a node's
attribute is replaced and anything unknown stays as it is; in the driver's Config the text is an HCL template, so what
is unknown fails the task, `$${` is a way to write `${` and `env["NAME"]` works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PLAIN: Final = re.compile(r"\$\{([a-zA-Z0-9_\-.]+)\}")
HCL: Final = re.compile(r"\$\$\{|%%\{|\$\{([^}]*)\}|%\{\s*([^}\s]*)[^}]*\}")
ENV_INDEX: Final = re.compile(r'env\["([^"]*)"\]|env\.([A-Za-z0-9_\-]+)')
NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_]")


class NotValid(Exception):
    """A driver's Config that cannot be read; text as in `Failed Validation`."""

    def __init__(self, text: str) -> None:
        super().__init__(f"2 errors occurred:\n\t* failed to parse config: \n\t* {text}\n\n")


def node_variables(node: Mapping[str, Any]) -> dict[str, str]:
    """`node.…`, `attr.…`, `meta.…` of a node as the API gives it."""
    found = {
        "node.unique.id": str(node.get("ID", "")),
        "node.unique.name": str(node.get("Name", "")),
        "node.datacenter": str(node.get("Datacenter", "")),
        "node.class": str(node.get("NodeClass", "")),
        "node.pool": str(node.get("NodePool", "default")),
        "node.region": str(node.get("Region") or "global"),
    }
    found |= {f"attr.{name}": str(value) for name, value in (node.get("Attributes") or {}).items()}
    return found | {f"meta.{name}": str(value) for name, value in (node.get("Meta") or {}).items()}


def task_environment(
    alloc: Mapping[str, Any], job: Mapping[str, Any], group: Mapping[str, Any], task: Mapping[str, Any], folder: Path
) -> dict[str, str]:
    """All `NOMAD_*` of a task; `folder`: of the allocation."""
    name = task["Name"]
    resources = alloc["AllocatedResources"]["Tasks"][name]
    found = {
        "NOMAD_ALLOC_ID": alloc["ID"],
        "NOMAD_SHORT_ALLOC_ID": alloc["ID"][:8],
        "NOMAD_ALLOC_NAME": alloc["Name"],
        "NOMAD_ALLOC_INDEX": alloc["Name"].rpartition("[")[2].rstrip("]"),
        "NOMAD_ALLOC_DIR": str(folder / "alloc"),
        "NOMAD_TASK_DIR": str(folder / name / "local"),
        "NOMAD_SECRETS_DIR": str(folder / name / "secrets"),
        "NOMAD_JOB_ID": job["ID"],
        "NOMAD_JOB_NAME": job["Name"],
        "NOMAD_GROUP_NAME": group["Name"],
        "NOMAD_TASK_NAME": name,
        "NOMAD_NAMESPACE": job["Namespace"],
        "NOMAD_REGION": job.get("Region") or "global",
        "NOMAD_CPU_LIMIT": str(resources["Cpu"]["CpuShares"]),
        "NOMAD_MEMORY_LIMIT": str(resources["Memory"]["MemoryMB"]),
    }
    if parent := job.get("ParentID"):
        found["NOMAD_JOB_PARENT_ID"] = parent
    if (most := resources["Memory"].get("MemoryMaxMB") or 0) > 0:
        found["NOMAD_MEMORY_MAX_LIMIT"] = str(most)
    found |= _ports(alloc) | _meta(job, group, task)
    for device in resources.get("Devices") or []:
        if (device["Vendor"], device["Type"]) == ("nvidia", "gpu"):
            found["NVIDIA_VISIBLE_DEVICES"] = ",".join(device["DeviceIDs"])
    return found


def _ports(alloc: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for port in alloc["AllocatedResources"]["Shared"].get("Ports") or []:
        label, ip, value = port["Label"], port["HostIP"], str(port["Value"])
        for kind in ("", "HOST_"):
            found |= {f"NOMAD_{kind}IP_{label}": ip, f"NOMAD_{kind}ADDR_{label}": f"{ip}:{value}"}
        found |= {f"NOMAD_{kind}PORT_{label}": value for kind in ("", "HOST_", "ALLOC_")}
    return found


def _meta(job: Mapping[str, Any], group: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, str]:
    """Twice each, as written and in capitals; what a dispatch may give and did not is there and empty."""
    merged: dict[str, str] = dict.fromkeys((job.get("ParameterizedJob") or {}).get("MetaOptional") or [], "")
    for part in (job, group, task):
        merged |= part.get("Meta") or {}
    found: dict[str, str] = {}
    for key, value in merged.items():
        clean = NOT_IN_A_NAME.sub("_", key)
        found |= {f"NOMAD_META_{clean.upper()}": value, f"NOMAD_META_{clean}": value}
    return found


class Environment:
    """`variables`: what the process gets."""

    def __init__(self, inherited: Mapping[str, str], own: Mapping[str, str], node: Mapping[str, str]) -> None:
        self.variables: dict[str, str] = {**inherited, **own}
        self.node = dict(node)

    def add(self, env: Mapping[str, str]) -> None:
        """A task's Env block."""
        for name, text in env.items():
            self.variables[name] = self.replace(text)

    def replace(self, text: str) -> str:
        """`${name}` where the name is known."""

        def value(match: re.Match[str]) -> str:
            name = match[1]
            return self.variables.get(name, self.node.get(name, match[0]))

        return PLAIN.sub(value, text)

    def hcl(self, text: str) -> str:
        """The value of a string in a driver's Config. Raises NotValid."""

        def value(match: re.Match[str]) -> str:
            if match[0] in {"$${", "%%{"}:
                return match[0][1:]
            if match[1] is None:
                raise NotValid(
                    f'Invalid template control keyword: "{match[2]}" is not a valid template control keyword.'
                )
            name = match[1].strip()
            if found := ENV_INDEX.fullmatch(name):
                name = found[1] or found[2]
            for known in (self.variables, self.node):
                if name in known:
                    return known[name]
            raise NotValid(f'Unknown variable: There is no variable named "{name}".')

        return HCL.sub(value, text)
