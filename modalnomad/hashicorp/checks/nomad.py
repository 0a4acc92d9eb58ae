"""Nomad: does it answer and lead, what may our token, does the environment exist, and what of its nodes?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from modalnomad.hashicorp.checks import nodes as of_nodes
from modalnomad.hashicorp.checks.common import check_version
from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.kit.finding import Finding, ok, problem, warning
from modalnomad.model.errors import BackendError
from modalnomad.model.ids import env_flag
from modalnomad.render.cluster import namespace_of
from modalnomad.settings import NomadSettings

LEAST: Final = "1.10.0"
TRIED: Final = "2.0.5"
NODES_ASKED: Final = 20
"""Nodes that are looked at one by one."""
AGENT_LIMIT: Final = 3.0
"""Seconds for the answer of one node's own agent."""
PROBE: Final = "modalnomad-doctor-probe"
"""A job that does not exist."""
NO_MORE_MEMORY: Final = "Memory oversubscription is not enabled"
"""What Nomad warns of, of a job whose tasks may take more than is reserved for them."""


async def nomad_checks(http: HttpClient, settings: NomadSettings, environment: str) -> list[Finding]:
    """All of them. Raises BackendError when Nomad does not answer at all."""
    leading = await http.request("GET", "/v1/status/leader", ok=(200, 500))
    token = await http.request("GET", "/v1/acl/token/self", ok=(200, 403, 404))
    found = [_leader(http, leading.text.strip('"') if leading.status == 200 else "")]
    if token.status != 200:
        return [*found, _no_token(http)]
    who: Mapping[str, Any] = token.json()
    rights = await _rights(http, environment)
    found.append(_acl(http, who, rights))
    if (elections := await _elections(http)) is not None:
        found.append(elections)
    found.append(await _namespace(http, environment))
    if rights["jobs"] and (memory := await _memory(http, settings, environment)) is not None:
        found.append(memory)
    if rights["nodes"]:
        nodes = (await http.request("GET", "/v1/nodes", params={"resources": True})).json() or []
        found += await _nodes(http, nodes, settings)
    return found


def _leader(http: HttpClient, leader: str) -> Finding:
    if leader:
        return ok("nomad", f"answers at {http.server.address}, its leader is {leader}")
    return problem(
        "nomad", "its servers have no leader: nothing can be placed", "look at the servers' logs, and start more"
    )


def _no_token(http: HttpClient) -> Finding:
    return problem(
        "nomad acl",
        "Nomad does not know this token, or it has expired",
        f"make a new one; it comes from {http.server.token_setting or http.server.setting}",
    )


async def _rights(http: HttpClient, environment: str) -> dict[str, bool]:
    """What the token may do in the environment; every probe is one that changes nothing."""
    space = {"namespace": namespace_of(environment)}
    probes: dict[str, tuple[str, str, Any]] = {
        "nodes": ("GET", "/v1/nodes", None),
        "jobs": ("GET", "/v1/jobs", None),
        "dispatch": ("POST", f"/v1/job/{PROBE}/dispatch", {}),
        "deploy": ("POST", f"/v1/job/{PROBE}/plan", {"Job": _probe(environment)}),
    }
    rights = {}
    for name, (method, path, body) in probes.items():
        try:
            await http.request(method, path, params={**space, "per_page": 1} if body is None else space, data=body)
            rights[name] = True
        except ServerRefused as error:
            # Anything but a refusal means that it was let in: there is no such job.
            rights[name] = error.status != 403 and "Permission denied" not in error.text
    return rights


def _probe(environment: str, **more: Any) -> Mapping[str, Any]:
    """Whole, because a job that is wrong is refused before rights are looked at. `more`: of its resources."""
    resources = {"CPU": 10, "MemoryMB": 10, **more}
    task = {"Name": "probe", "Driver": "raw_exec", "Config": {"command": "true"}, "Resources": resources}
    return {
        "ID": PROBE,
        "Name": PROBE,
        "Namespace": namespace_of(environment),
        "Type": "batch",
        "Datacenters": ["*"],
        "TaskGroups": [{"Name": "probe", "Tasks": [task]}],
    }


async def _memory(http: HttpClient, settings: NomadSettings, environment: str) -> Finding | None:
    """May replicas take more than is reserved for them? The scheduler's settings say it to operators only, but of each
    job Nomad warns who may look at jobs. None: it does not tell."""
    job = {**_probe(environment, MemoryMaxMB=-1), "NodePool": settings.node_pool}
    space = {"namespace": namespace_of(environment)}
    answer = await http.request("POST", "/v1/validate/job", params=space, data={"Job": job}, ok=(200, 403, 500))
    if answer.status != 200:
        return None
    if NO_MORE_MEMORY not in (answer.json().get("Warnings") or ""):
        return ok("memory", "replicas may take more than is reserved for them")
    return warning(
        "memory",
        "Nomad kills replicas that take more memory than is reserved for them (memory=, else nomad.memory = "
        f"{settings.memory} MiB), whatever limit they have: its scheduler does not allow memory oversubscription",
        "`nomad operator scheduler set-config -memory-oversubscription=true`, or reserve what they need",
    )


def _acl(http: HttpClient, who: Mapping[str, Any], rights: Mapping[str, bool]) -> Finding:
    accessor, source = who.get("AccessorID"), http.server.token_setting or http.server.setting
    if accessor == "acls-disabled":
        return warning(
            "nomad acl",
            "ACLs are off: whoever reaches Nomad may run anything on its nodes",
            "acl { enabled = true } in its agents, `nomad acl bootstrap`, `modalnomad setup`",
        )
    name = "no token" if accessor == "anonymous" else f"token {who.get('Name') or accessor}"
    may = [word for right, word in (("dispatch", "start replicas"), ("deploy", "deploy")) if rights[right]]
    if not rights["jobs"] or not rights["nodes"]:
        what = "jobs of this environment" if not rights["jobs"] else "nodes"
        return problem(
            "nomad acl",
            f"{name} may not look at {what}",
            f"give a token with the policy modalnomad-deployer or modalnomad-router (`modalnomad setup`): {source}",
        )
    if not may:
        return warning(
            "nomad acl",
            f"{name} may only look: it can neither deploy nor start replicas",
            f"give a token with the policy modalnomad-deployer or modalnomad-router: {source}",
        )
    kind = ", a management token: it may do everything" if who.get("Type") == "management" else ""
    return ok("nomad acl", f"{name} may look, {', '.join(may)}{kind}")


async def _namespace(http: HttpClient, environment: str) -> Finding:
    name = namespace_of(environment)
    try:
        if (await http.request("GET", f"/v1/namespace/{name}", ok=(200, 404))).status == 200:
            return ok("namespace", f"{name} is there")
    except ServerRefused as error:
        if error.status != 403:
            raise
        return ok("namespace", f"{name} cannot be seen with this token")
    return problem("namespace", f"there is no {name}", f"modalnomad setup{env_flag(environment)}")


async def _elections(http: HttpClient) -> Finding | None:
    """None: it cannot be told, or does not matter."""
    peers = await http.request("GET", "/v1/status/peers", ok=(200, 403, 500))
    config = await _agent(http, http.server.address)
    if peers.status != 200 or isinstance(config, str):
        return None
    return of_nodes.check_elections(len(peers.json()), config)


async def _nodes(http: HttpClient, nodes: Sequence[of_nodes.Shape], settings: NomadSettings) -> list[Finding]:
    found = [of_nodes.check_nodes(nodes, settings)]
    usable = of_nodes.eligible(nodes, settings)
    versions = sorted({str(node.get("Version", "")) for node in nodes})
    found += [old for version in versions if (old := check_version("nomad", "Nomad", version, LEAST, TRIED))]
    if not usable:
        return found
    found += [of_nodes.check_driver(usable, settings.driver), of_nodes.check_gpus(usable)]
    asked = usable[:NODES_ASKED]
    whole = [(await http.request("GET", f"/v1/node/{node['ID']}")).json() for node in asked]
    found += [of_nodes.check_vault_of_nodes(whole), of_nodes.check_consul_of_nodes(whole)]
    configs, hidden = await _agents(http, whole)
    return [*found, *of_nodes.check_agents(configs, hidden, settings)]


async def _agents(http: HttpClient, nodes: Sequence[of_nodes.Shape]) -> tuple[dict[str, of_nodes.Shape], str]:
    """Configurations of the nodes' own agents, each asked itself; why the rest is not there."""
    scheme = http.server.address.partition("://")[0]
    results = await asyncio.gather(*(_agent(http, f"{scheme}://{node['HTTPAddr']}") for node in nodes))
    configs = {node["Name"]: one for node, one in zip(nodes, results, strict=True) if not isinstance(one, str)}
    reasons = sorted({one for one in results if isinstance(one, str)})
    return configs, "; ".join(reasons)


async def _agent(http: HttpClient, address: str) -> of_nodes.Shape | str:
    """Its configuration, or why it cannot be seen."""
    client = HttpClient(replace(http.server, address=address))
    try:
        answer = await client.request("GET", "/v1/agent/self", ok=(200, 403), limit=AGENT_LIMIT)
        config = answer.json().get("config") if answer.status == 200 else None
    except (BackendError, ValueError):
        return "an agent does not answer from here"
    finally:
        await client.close()
    return config if isinstance(config, dict) else "this token lacks agent read"
