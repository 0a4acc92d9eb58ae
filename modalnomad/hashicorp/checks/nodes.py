"""Nomad's nodes: may replicas run there, and as they should? Pure: what Nomad says of them goes in, findings come out.

Shapes: https://developer.hashicorp.com/nomad/api-docs/nodes, https://developer.hashicorp.com/nomad/api-docs/agent
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modalnomad.kit.finding import Finding, ok, problem, warning
from modalnomad.settings import NomadSettings

Shape = Mapping[str, Any]
NAMES_SHOWN: Final = 5
MAX_KILL_DEFAULT: Final = 30.0
"""Seconds; Nomad's own `max_kill_timeout`."""
FEW_ALLOCATIONS: Final = 50
"""Nomad's own `gc_max_allocs`."""
FAILOVER_DEFAULT: Final = 300.0
"""Seconds; Nomad's own `failover_heartbeat_ttl` (nomad/config.go)."""
RAW_EXEC: Final = 'plugin "raw_exec" { config { enabled = true } } in the agents\' configuration'
UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def eligible(nodes: Sequence[Shape], settings: NomadSettings) -> list[Shape]:
    """Those on which replicas would be placed now."""
    return [
        node
        for node in nodes
        if node["Status"] == "ready"
        and node["SchedulingEligibility"] == "eligible"
        and node.get("NodePool", "default") == settings.node_pool
        and any(fnmatch.fnmatchcase(node["Datacenter"], pattern) for pattern in settings.datacenters)
    ]


def check_nodes(nodes: Sequence[Shape], settings: NomadSettings) -> Finding:
    """Is there any?"""
    usable = eligible(nodes, settings)
    others = len(nodes) - len(usable)
    where = f"node pool {settings.node_pool}, data centers {', '.join(settings.datacenters)}"
    if not usable:
        states = ", ".join(sorted({f"{n['Status']}, {n['SchedulingEligibility']}, {n['Datacenter']}" for n in nodes}))
        return problem(
            "nodes",
            f"no node can take replicas ({where}); Nomad has {others} others" + (f": {states}" if states else ""),
            "start Nomad clients there, or correct nomad.node_pool and nomad.datacenters",
        )
    beside = f"; {others} others are drained, down or elsewhere" if others else ""
    return ok("nodes", f"{len(usable)} can take replicas{beside}")


def check_driver(nodes: Sequence[Shape], driver: str) -> Finding:
    """Of nodes that are eligible."""
    without = {node["Name"]: _driver_state(node, driver) for node in nodes if _driver_state(node, driver)}
    if not without:
        return ok("driver", f"{driver} works on all of them")
    told = _some([f"{name} ({why})" for name, why in without.items()])
    fix = RAW_EXEC if driver == "raw_exec" else "install docker there, and let the agent's user reach it"
    if len(without) == len(nodes):
        return problem("driver", f"{driver} works on no node: {told}", fix)
    return warning("driver", f"{driver} does not work on {len(without)} of {len(nodes)} nodes: {told}", fix)


def _driver_state(node: Shape, driver: str) -> str:
    """Empty: well."""
    found = (node.get("Drivers") or {}).get(driver)
    if found is None or not found.get("Detected"):
        return (found or {}).get("HealthDescription") or "not enabled"
    return "" if found.get("Healthy") else found.get("HealthDescription") or "unhealthy"


def check_gpus(nodes: Sequence[Shape]) -> Finding:
    """Types and numbers. No GPU is no problem: no program may want one."""
    counts: dict[str, int] = {}
    for node in nodes:
        for device in (node.get("NodeResources") or {}).get("Devices") or ():
            if device.get("Type") == "gpu":
                healthy = sum(bool(instance.get("Healthy")) for instance in device.get("Instances") or ())
                name = f"{device['Vendor']} {device['Name']}"
                counts[name] = counts.get(name, 0) + healthy
    if counts:
        return ok("gpu", ", ".join(f"{count} × {name}" for name, count in sorted(counts.items())))
    return ok("gpu", "none: gpu= can be placed nowhere (Nomad finds GPUs by its plug-in nomad-device-nvidia)")


def check_vault_of_nodes(nodes: Sequence[Shape]) -> Finding:
    """`nodes` in full, with attributes: Nomad places a task with secrets only where it sees a Vault."""
    without = [node["Name"] for node in nodes if not (node.get("Attributes") or {}).get("vault.version")]
    if not without:
        return ok("node vault", "every node sees Vault")
    return (problem if len(without) == len(nodes) else warning)(
        "node vault",
        f"{len(without)} of {len(nodes)} nodes see no Vault, and get no replica with secrets: {_some(without)}",
        "vault { enabled = true  address = …  jwt_auth_backend_path = … } in the configuration of Nomad's servers and "
        'clients; on servers also default_identity { aud = ["vault.io"]  ttl = "1h" }',
    )


def check_consul_of_nodes(nodes: Sequence[Shape]) -> Finding:
    """`nodes` in full: services of a node without Consul are registered nowhere."""
    without = [node["Name"] for node in nodes if not (node.get("Attributes") or {}).get("consul.version")]
    if not without:
        return ok("node consul", "every node sees Consul")
    return (problem if len(without) == len(nodes) else warning)(
        "node consul",
        f"{len(without)} of {len(nodes)} nodes see no Consul, and get no replica: {_some(without)}",
        "run a Consul agent there, and name it in Nomad's configuration: consul { address = … }",
    )


def check_agents(configs: Mapping[str, Shape], hidden: str, settings: NomadSettings) -> list[Finding]:
    """Settings of nodes. `configs`: node → `config` of its `/v1/agent/self`; `hidden`: why others cannot be seen."""
    found: list[Finding] = []
    cut = {name: limit for name, one in configs.items() if (limit := max_kill(one)) < settings.grace_period}
    fix = f'client {{ max_kill_timeout = "{settings.grace_period:g}s" }} there, or a shorter nomad.grace_period'
    if cut:
        told = _some([f"{name} ({limit:g} s)" for name, limit in cut.items()])
        found.append(
            warning(
                "agents", f"replicas are killed before nomad.grace_period = {settings.grace_period:g} s: {told}", fix
            )
        )
    elif hidden and settings.grace_period > MAX_KILL_DEFAULT:
        found.append(
            warning(
                "agents",
                f"nomad.grace_period = {settings.grace_period:g} s is more than Nomad's own max_kill_timeout of 30 s, "
                f"and that of nodes cannot be seen ({hidden})",
                fix,
            )
        )
    few = [name for name, one in configs.items() if _client(one).get("GCMaxAllocs", 0) <= FEW_ALLOCATIONS]
    if few:
        found.append(
            warning(
                "agents",
                f"logs of ended replicas go once a node has more than {FEW_ALLOCATIONS} allocations: {_some(few)}",
                "client { gc_max_allocs = 500 } there",
            )
        )
    if settings.driver == "docker" and (removing := [name for name, one in configs.items() if docker_gc(one)]):
        found.append(
            warning(
                "agents",
                f"images are removed minutes after their last use, then pulled for the next wake: {_some(removing)}",
                'plugin "docker" { config { gc { image = false } } } there, and prune images by a job of your own',
            )
        )
    if not found:
        seen = f"settings of {len(configs)} nodes fit" if configs else "settings of nodes cannot be seen"
        found.append(ok("agents", f"{seen} ({hidden})" if hidden else seen))
    return found


def check_elections(servers: int, config: Shape) -> Finding | None:
    """How long new leaders believe that every node lives. `config`: of one server's agent. None: there is but one
    server, or this agent is none."""
    server = config.get("Server") or {}
    if servers < 2 or not server.get("Enabled"):
        return None
    seconds = (server.get("FailoverHeartbeatTTL") or 0) / 1e9 or FAILOVER_DEFAULT
    told = f"after an election they believe for {seconds:g} s that every node lives"
    if seconds < FAILOVER_DEFAULT:
        return ok("nomad servers", f"there are {servers}; {told}")
    return warning(
        "nomad servers",
        f"there are {servers}; {told}: replicas are placed on a machine that was lost together with the leader",
        'server { failover_heartbeat_ttl = "30s" } in the configuration of Nomad\'s servers',
    )


def max_kill(config: Shape) -> float:
    """Seconds."""
    text = str(_client(config).get("MaxKillTimeout") or "")
    parts = re.findall(r"([0-9.]+)(h|ms|us|µs|ns|m|s)", text)
    return sum(float(number) * UNITS[unit] for number, unit in parts) if parts else MAX_KILL_DEFAULT


def docker_gc(config: Shape) -> bool:
    """Does the docker driver remove images? It does unless told otherwise."""
    for plugin in config.get("Plugins") or ():
        if plugin.get("Name") == "docker":
            gc = _first(_first(plugin.get("Config")).get("gc"))
            return bool(gc.get("image", True))
    return True


def _client(config: Shape) -> Shape:
    return config.get("Client") or {}


def _first(value: Any) -> Shape:
    """HCL blocks come as lists of one."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, dict) else {}


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
