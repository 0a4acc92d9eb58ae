"""A revision as Nomad's jobs: the parent whose children are its replicas, and what belongs to it.

Wire shapes: https://developer.hashicorp.com/nomad/api-docs/jobs and …/json-jobs. Durations are nanoseconds. The same
input gives the same output, key order included; the server drops a key it does not know, so each is checked here.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final

from modalnomad_sdk import contract

from modalnomad.model.errors import UserError
from modalnomad.model.replica import ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.render import cluster
from modalnomad.render.nomad_check import check_job as check_job
from modalnomad.render.nomad_rendering import Json, nanoseconds
from modalnomad.render.nomad_rendering import Rendering as Rendering
from modalnomad.render.nomad_task import disk, prewarm_task, task
from modalnomad.render.nomad_words import launch_prefix, submission, ui
from modalnomad.settings import DEFAULT_PREFIX

PAYLOAD_LIMIT: Final = 16 * 1024
"""Bytes of a dispatch's payload."""
CHECK_INTERVAL: Final = 1.0
"""Seconds; the least that Nomad takes."""
META_APP: Final = "app"
META_FUNCTION: Final = "function"
META_ENVIRONMENT: Final = "environment"
META_VERSION: Final = "version"
META_URL: Final = "url"
NOTHING_RUNS_OF = frozenset({"UI", "Meta"})
"""Parts of a job that are for people and the watchers."""


def parent_job(revision: Revision, rendering: Rendering) -> Json:
    """The body that registers a revision, asleep.

    Raises:
        UserError: Nomad cannot run it as it is declared; see `nomad_task.task`.
    """
    job: Json = {
        **_names(revision, rendering, cluster.parent_id(revision.app, revision.function.tag, rendering.version)),
        "Type": "batch",
        **_place(rendering),
        "Meta": {},
        "UI": ui(revision, rendering),
        "ParameterizedJob": {"Payload": "optional", "MetaOptional": list(cluster.CHILD_META)},
        "TaskGroups": [_group(revision, rendering)],
    }
    job["Meta"] = _meta(revision, rendering, job)
    body = {"Job": job, "Submission": submission(revision, rendering)}
    check_job(body)
    return body


def one_of(body: Json) -> Json:
    """The same as a plain job that runs at once, under another name: what a plan of it says holds for a replica."""
    job = {name: copy.deepcopy(body["Job"][name]) for name in body["Job"] if name not in {"ParameterizedJob", "UI"}}
    job |= {"ID": f"{job['ID']}.one", "Name": f"{job['Name']}.one"}
    job["Meta"] = {name: value for name, value in job["Meta"].items() if name != cluster.META_REVISION}
    found = {"Job": job}
    check_job(found)
    return found


def prewarm_job(revision: Revision, rendering: Rendering) -> Json:
    """The body of a job that makes the revision's environment on every node it could run on, once; its name is the
    same for all Functions of an App with that image. Nodes without a GPU are not left out: that is not known of a node
    before a device is taken.

    Raises:
        UserError: as `parent_job`.
    """
    image = revision.image.digest[:12]
    name = f"{revision.app}.prewarm.{image}"
    job: Json = {
        **_names(revision, rendering, name),
        "Type": "sysbatch",
        **_place(rendering),
        "Meta": {META_APP: revision.app, META_ENVIRONMENT: revision.environment, "image": revision.image.digest},
        "TaskGroups": [
            {
                "Name": "prewarm",
                "Count": 1,
                "Constraints": _constraints(),
                "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
                "EphemeralDisk": {"SizeMB": disk(revision.function.resources, rendering)},
                "Tasks": [prewarm_task(revision, rendering)],
            }
        ],
    }
    body = {"Job": job}
    check_job(body)
    return body


def dispatch_body(
    key: ReplicaKey,
    *,
    reason: str,
    request_id: str = "",
    secrets: str = "",
    started_by: str = "",
    decision: Mapping[str, object] | None = None,
) -> Json:
    """The body that starts a replica; its idempotency token goes into the URL. `decision`: what led to it, for people;
    left out where it is longer than Nomad takes."""
    parameters = cluster.encode(key.pool.parameters) if key.pool.parameters else ""
    short = parameters if len(parameters) <= cluster.CONSUL_META_LIMIT else ""
    payload = json.dumps(decision, ensure_ascii=False, default=str).encode() if decision else b""
    values = {
        cluster.META_POOL: str(key.pool),
        cluster.META_NUMBER: str(key.number),
        cluster.META_EPOCH: str(key.epoch),
        cluster.META_PARAMETERS: parameters,
        cluster.META_SHORT_PARAMETERS: short,
        cluster.META_REASON: reason,
        cluster.META_REQUEST: request_id,
        cluster.META_SECRETS: secrets,
        cluster.META_STARTED_BY: started_by,
    }
    return {
        "Meta": values,
        "Payload": base64.b64encode(payload).decode() if len(payload) <= PAYLOAD_LIMIT else "",
        "IdPrefixTemplate": launch_prefix(key.number, reason, request_id),
    }


def _names(revision: Revision, rendering: Rendering, name: str) -> Json:
    if not re.fullmatch(r"[^\s/\x00-\x1f]{1,500}", name):
        raise UserError(f"{name!r} cannot be a job of Nomad: no blanks and no '/' are allowed", "rename the Function")
    found: Json = {"ID": name, "Name": name, "Namespace": cluster.namespace_of(revision.environment)}
    return found | ({"Region": rendering.nomad.region} if rendering.nomad.region else {})


def _place(rendering: Rendering) -> Json:
    return {"Datacenters": list(rendering.nomad.datacenters), "NodePool": rendering.nomad.node_pool}


def _meta(revision: Revision, rendering: Rendering, job: Json) -> dict[str, str]:
    found = {
        cluster.META_REVISION: str(revision.id),
        META_APP: revision.app,
        META_FUNCTION: revision.function.tag,
        META_ENVIRONMENT: revision.environment,
        META_VERSION: str(rendering.version),
    }
    if url := next(iter(rendering.web_urls.values()), ""):
        found[META_URL] = url
    if rendering.key_mark:
        found[cluster.META_KEY] = rendering.key_mark
    if rendering.prefix != DEFAULT_PREFIX:
        found[cluster.META_PREFIX] = rendering.prefix
    return found | {cluster.META_SPEC: _hash({n: v for n, v in job.items() if n not in NOTHING_RUNS_OF})}


def _hash(spec: Json) -> str:
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _group(revision: Revision, rendering: Rendering) -> Json:
    """One replica. A failed start is reported and not tried again: the router decides."""
    replica = task(revision, rendering)
    return {
        "Name": cluster.GROUP,
        "Count": 1,
        "Constraints": _constraints(),
        **_looking_around(replica),
        "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
        "EphemeralDisk": {"SizeMB": disk(revision.function.resources, rendering)},
        # Replicas end by themselves, when nobody asks them any more. Where somebody stops one by hand it is gone from
        # Consul at once, and refuses what still comes in a way that routers try elsewhere: nothing is won by waiting,
        # and a GPU is lost for as long. Without any, Nomad warns at each registration.
        "ShutdownDelay": nanoseconds(0.001),
        "Networks": [_network(revision, rendering)],
        "Services": [_service(revision, rendering)],
        "Tasks": [replica],
    }


def _constraints() -> list[Json]:
    """That a node has the driver is Nomad's own condition ("missing drivers")."""
    return [{"LTarget": "${attr.kernel.name}", "RTarget": "linux", "Operand": "="}]


def _looking_around(task: Json) -> Json:
    """For a batch job Nomad weighs two nodes with room and takes the better one: a preferred card on a third is not
    seen. For one that likes something of nodes it weighs 100 (2.0.5, scheduler/feasible/stack.go); this likes all."""
    if not any("Affinities" in device for device in task["Resources"].get("Devices", ())):
        return {}
    return {"Affinities": [each | {"Weight": 1} for each in _constraints()]}


def _network(revision: Revision, rendering: Rendering) -> Json:
    """A container shares its node's network, and cannot make one of its own: two replicas with the same fixed port are
    not placed on one node."""
    found: Json = {"Mode": "host", "DynamicPorts": [{"Label": cluster.PORT}]}
    ports = revision.function.web_ports
    if ports and rendering.nomad.driver == "docker":
        found["ReservedPorts"] = [{"Label": f"web{port}", "Value": port} for port in dict.fromkeys(ports)]
    return found


def _service(revision: Revision, rendering: Rendering) -> Json:
    """The registration that routers read. Its check is the runner's own, without a ticket."""
    from_dispatch = (cluster.META_POOL, cluster.META_NUMBER, cluster.META_EPOCH)
    return {
        "Name": cluster.REPLICA_SERVICE,
        "Provider": "consul",
        "PortLabel": cluster.PORT,
        "AddressMode": "host",
        "Tags": [f"rev=r{rendering.version}", f"pool=${{NOMAD_META_{cluster.META_POOL}}}"],
        "Meta": {
            cluster.META_REVISION: str(revision.id),
            **{name: f"${{NOMAD_META_{name}}}" for name in from_dispatch},
            cluster.META_PARAMETERS: f"${{NOMAD_META_{cluster.META_SHORT_PARAMETERS}}}",
            "alloc": "${NOMAD_ALLOC_ID}",
            "max_inputs": str(revision.function.scaling.max_inputs),
        },
        "Checks": [
            {
                "Name": "ready",
                "Type": "http",
                "Path": contract.READY_PATH,
                "Method": "GET",
                "Interval": nanoseconds(CHECK_INTERVAL),
                "Timeout": nanoseconds(CHECK_INTERVAL),
            }
        ],
    }
