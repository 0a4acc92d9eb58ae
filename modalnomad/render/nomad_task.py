"""The task of a replica: what runs, with which files, variables, secrets and resources."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from typing import Final

from modalnomad_sdk import contract

from modalnomad.model.errors import UserError
from modalnomad.model.ids import ENVIRONMENT_NAME, SECRET_NAME, Digest
from modalnomad.model.manifest import Resources, SecretRef
from modalnomad.model.revision import Revision
from modalnomad.render import cluster
from modalnomad.render.environment import modal_variables, revision_environment
from modalnomad.render.nomad_devices import devices
from modalnomad.render.nomad_rendering import Json, Rendering, literal, nanoseconds

PROGRAM: Final = "local/modalnomad.pyz"
"""The zip application, relative to the task's folder."""
BUNDLE: Final = "local/root"
"""The replica's own copy of the bundle, likewise."""
ALONE: Final = ("-I", "-S")
"""Options of the launcher's Python: what sites start with every one can take longer than all the rest of it."""
KILL_MARGIN: Final = 5.0
"""Seconds beyond the grace period before Nomad kills: the runner ends itself first, and can say why."""
PROCESSES: Final = 4096
"""Processes and threads of one container."""
PULL_LIMIT: Final = 300
"""Seconds a node may take to pull an image. Nomad 2.0.5 cuts a longer one to this."""
DISK: Final = 300
"""MiB of a replica's folder on its node, logs and bundle included, where the program does not say; Nomad's default."""
LOG_FILE: Final = 10
"""MB of one log file."""
UNLIMITED: Final = -1
SECRET_LIMIT: Final = 1
"""MiB of one rendered secret; all of a task's share a file system in memory."""
VAULT_IDENTITY: Final = "vault_default"
"""Name by which Nomad finds the identity for its default Vault cluster."""
IDENTITY_TTL: Final = 3600.0
PINNED: Final = re.compile(r"(?:[a-z0-9][a-zA-Z0-9._:/-]*@)?sha256:[0-9a-f]{64}")


def task(revision: Revision, rendering: Rendering) -> Json:
    """One replica. Its pool, number and parameters come with each dispatch.

    Raises:
        UserError: the driver cannot run the image; a value that Nomad would change; GPUs it cannot be asked for; a
            secret of another environment.
    """
    files = secret_files(revision)
    found: Json = {
        "Name": cluster.TASK,
        "Driver": rendering.nomad.driver,
        "Config": _config(revision, rendering),
        "Env": _environment(revision, rendering, files),
        "Artifacts": _artifacts(revision, rendering),
        "Resources": _resources(revision.function.resources, rendering, secrets=len(files)),
        "LogConfig": log_config(rendering),
        "KillSignal": "SIGTERM",
        "KillTimeout": nanoseconds(rendering.nomad.grace_period + KILL_MARGIN),
    }
    if files:
        found["Vault"] = _vault(revision)
        found["Identities"] = [
            {"Name": VAULT_IDENTITY, "Audience": [cluster.VAULT_AUDIENCE], "TTL": nanoseconds(IDENTITY_TTL)}
        ]
        found["Templates"] = [
            _template(file, path, rendering)
            for file, path in zip(files, secret_paths(revision.secrets, revision.environment), strict=True)
        ]
    return found


def prewarm_task(revision: Revision, rendering: Rendering) -> Json:
    """Make the revision's environment on a node, or pull its image, and end."""
    nomad = rendering.nomad
    if nomad.driver == "docker":
        config = _container(revision) | {"command": contract.CONTAINER_PYTHON, "args": ["-I", "-c", "pass"]}
        config["image_pull_timeout"] = f"{PULL_LIMIT}s"  # nobody's request waits for this one
        what: Json = {"Config": config}
    else:
        what = {
            "Config": _program(rendering, "prewarm"),
            "Env": literal(_launcher(revision, rendering)),
            "Artifacts": [_sdk(rendering)],
        }
    return {
        "Name": cluster.TASK,
        "Driver": nomad.driver,
        **what,
        "Resources": {"CPU": nomad.cpu, "MemoryMB": nomad.memory, "MemoryMaxMB": UNLIMITED},
        "LogConfig": log_config(rendering),
        "KillSignal": "SIGTERM",
    }


def disk(resources: Resources, rendering: Rendering) -> int:
    """MiB of a replica's folder; never less than its logs may take, which Nomad refuses."""
    return max(resources.ephemeral_disk or DISK, 2 * LOG_FILE * rendering.nomad.log_files + 100)


def log_config(rendering: Rendering) -> Json:
    """Of each stream."""
    return {"MaxFiles": rendering.nomad.log_files, "MaxFileSizeMB": LOG_FILE}


def secret_files(revision: Revision) -> tuple[str, ...]:
    """Names in the task's folder of secrets, in the order of merging: `00-db.json`, `01-anonymous.json`."""
    return tuple(f"{number:02}-{ref.name or 'anonymous'}.json" for number, ref in enumerate(revision.secrets))


def secret_paths(refs: Sequence[SecretRef], environment: str) -> tuple[str, ...]:
    """Where their values are, below the mount's `data/`.

    Raises:
        UserError: of another environment, whose secrets a task of this one cannot read; a name that is none.
    """
    paths = []
    for ref in refs:
        if ref.environment is not None and ref.environment != environment:
            raise UserError(
                f"secret {ref.name!r} is of environment {ref.environment!r}: on a cluster what runs in {environment!r} "
                "can read its own environment's secrets only",
                f"create it there too: modalnomad secret create {ref.name} --env {environment}, and leave "
                "environment_name= out",
            )
        if ref.name is not None and SECRET_NAME.fullmatch(ref.name):
            name = ref.name
        elif ref.name is None and re.fullmatch(r"[0-9a-f]{64}", ref.anonymous or ""):
            name = f"_anonymous/{ref.anonymous}"
        else:
            raise UserError(f"secret name {ref.name or ref.anonymous!r}: a-z, 0-9, '-' and '_', at most 63")
        if not ENVIRONMENT_NAME.fullmatch(environment):
            raise UserError(f"environment {environment!r}: a-z, 0-9 and '-', at most 63")
        paths.append(f"modalnomad/{environment}/{name}")
    return tuple(paths)


def pinned(revision: Revision) -> str:
    """The container's image by its digest.

    Raises:
        UserError: there is none, or it is named by a tag, which may mean another image tomorrow.
    """
    reference = revision.image.reference
    if reference is None:
        raise UserError(
            f"{revision.app}/{revision.function.tag} has no container image, which the docker driver needs",
            'deploy it again, or set nomad.driver = "raw_exec"',
        )
    if not PINNED.fullmatch(reference):
        raise UserError(
            f"image {reference!r} of {revision.app}/{revision.function.tag} is not pinned by a digest: nodes would run "
            "whatever it means then",
            "deploy it again: a deploy pins images as registry/name@sha256:…",
        )
    return reference


def _config(revision: Revision, rendering: Rendering) -> Json:
    if rendering.nomad.driver == "docker":
        args = [*ALONE, contract.CONTAINER_SDK, "launch"]
        return _container(revision) | {"command": contract.CONTAINER_PYTHON, "args": args}
    if revision.image.reference is not None:
        raise UserError(
            f"{revision.app}/{revision.function.tag} has a container image, which raw_exec cannot run",
            'set nomad.driver = "docker", or deploy it again',
        )
    return _program(rendering, "launch")


def _program(rendering: Rendering, command: str) -> Json:
    name = PROGRAM.rpartition("/")[2]
    return {"command": rendering.nomad.python, "args": [*ALONE, f"${{NOMAD_TASK_DIR}}/{name}", command]}


def _container(revision: Revision) -> Json:
    """Docker's part: host network (honest and quick: reference docker-measured 2), no shell, nothing it need not do."""
    return {
        "image": pinned(revision),
        "force_pull": False,
        "image_pull_timeout": f"{min(PULL_LIMIT, math.ceil(revision.function.start_limit))}s",
        "network_mode": "host",
        "init": True,
        "pids_limit": PROCESSES,
        "cap_drop": ["all"],
        "labels": [{"modalnomad.revision": revision.id}],
    }


def _environment(revision: Revision, rendering: Rendering, files: Sequence[str]) -> dict[str, str]:
    nomad, function = rendering.nomad, revision.function
    fixed = revision_environment(
        revision,
        ticket_sha256=rendering.ticket_sha256,
        grace_period=nomad.grace_period,
        orphan_factor=rendering.orphan_factor,
        # The runner takes the port on the node itself where a namespace is not to be had.
        network="exclusive" if nomad.driver == "docker" else "namespace",
        gpus=sum(int(device["Count"]) for device in devices(function.resources.gpu)),
        web_urls=rendering.web_urls,
    )
    fixed |= modal_variables(revision, "")
    del fixed["MODAL_TASK_ID"]
    fixed |= _launcher(revision, rendering)
    if files:
        fixed[contract.ENV_SECRET_FILES] = ",".join(files)
    fixed = literal(fixed)
    fixed |= {
        "MODAL_TASK_ID": "ta-${NOMAD_ALLOC_ID}",
        contract.ENV_BUNDLE: "${NOMAD_TASK_DIR}/" + BUNDLE.rpartition("/")[2],
        contract.ENV_POOL: f"${{NOMAD_META_{cluster.META_POOL}}}",
        contract.ENV_REPLICA: f"${{NOMAD_META_{cluster.META_NUMBER}}}.${{NOMAD_META_{cluster.META_EPOCH}}}",
    }
    if function.parameters:
        fixed[contract.ENV_PARAMETERS] = f"${{NOMAD_META_{cluster.META_PARAMETERS}}}"
    return fixed


def _launcher(revision: Revision, rendering: Rendering) -> dict[str, str]:
    """What only the launcher reads. A container has its environment already."""
    image = revision.image
    found = {contract.ENV_LAUNCH: str(contract.VERSION), contract.ENV_IMAGE: image.digest}
    if image.workdir is not None:
        found[contract.ENV_IMAGE_WORKDIR] = image.workdir
    if rendering.nomad.driver == "docker":
        return found
    found |= {
        contract.ENV_IMAGE_ENV: _encoded([list(pair) for pair in image.env]),
        contract.ENV_NODE_STORE: rendering.nomad.node_store,
        contract.ENV_SDK: rendering.sdk,
        contract.ENV_ARTIFACTS: rendering.artifacts_url,
    }
    if image.pack is not None:
        found[contract.ENV_PACK] = image.pack
    return found


def _encoded(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def _artifacts(revision: Revision, rendering: Rendering) -> list[Json]:
    bundle = _artifact(rendering, revision.bundle, suffix=".tar.gz", mode="dir", target=BUNDLE)
    return [bundle] if rendering.nomad.driver == "docker" else [_sdk(rendering), bundle]


def _sdk(rendering: Rendering) -> Json:
    return _artifact(rendering, rendering.sdk, suffix="", mode="file", target=PROGRAM)


def _artifact(rendering: Rendering, digest: Digest, *, suffix: str, mode: str, target: str) -> Json:
    """By the name's end it is unpacked or not."""
    return {
        "GetterSource": f"{rendering.artifacts_url}/artifacts/{digest}{suffix}",
        "GetterOptions": {"checksum": f"sha256:{digest}"},
        "GetterMode": mode,
        "RelativeDest": target,
    }


def _resources(resources: Resources, rendering: Rendering, *, secrets: int) -> Json:
    """Requests are reserved. Nomad has no limit of CPU beside the request. A replica without a limit of memory of its
    own may use what its node has, where the cluster's scheduler allows more than is reserved; else the request is it.
    """
    nomad = rendering.nomad
    cores = resources.cpu[0] if resources.cpu else None
    request, limit = resources.memory or (None, None)
    memory = max(10, request or nomad.memory)
    found: Json = {
        "CPU": max(1, round(cores * nomad.core_mhz)) if cores else nomad.cpu,
        "MemoryMB": memory,
        "MemoryMaxMB": UNLIMITED if limit is None else max(limit, memory),
    }
    if asked := devices(resources.gpu):
        found["Devices"] = asked
    if secrets:
        found["SecretsMB"] = secrets * SECRET_LIMIT + 1
    return found


def _vault(revision: Revision) -> Json:
    """Each default of these restarts or kills healthy tasks, or hands the program a token. A namespace of Vault is for
    Nomad's agents to name in their own configuration: in a job it is refused by all but Nomad Enterprise."""
    return {
        "Role": cluster.vault_role(revision.environment),
        "Env": False,
        "DisableFile": True,
        "ChangeMode": "noop",
        "AllowTokenExpiration": True,
    }


def _template(file: str, path: str, rendering: Rendering) -> Json:
    """One secret as a JSON object of strings: exact, and neither in the client's state nor in `docker inspect`."""
    where = f"{rendering.vault.mount}/data/{path}"
    return {
        "EmbeddedTmpl": f'{{{{ with secret "{where}" }}}}{{{{ .Data.data | toJSON }}}}{{{{ end }}}}',
        "DestPath": f"secrets/{file}",
        "Envvars": False,
        "Once": True,
        "ErrMissingKey": True,
        "ChangeMode": "noop",
        "Perms": "0400",
        "Splay": 0,
    }
