"""The environment of a replica on a node, as `modalnomad/render/process.py` makes it on the machine of `up`. Pure."""

from __future__ import annotations

import os

from modalnomad_sdk import contract as c

from .refused import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PASSED = (
    *(c.ENV_CONTRACT, c.ENV_APP, c.ENV_ENVIRONMENT, c.ENV_FUNCTION, c.ENV_REVISION, c.ENV_POOL, c.ENV_REPLICA),
    *(c.ENV_SOURCE, c.ENV_BUNDLE, c.ENV_PARAMETERS, c.ENV_TICKET_SHA256, c.ENV_NETWORK, c.ENV_WEB_PORTS),
    *(c.ENV_MAX_INPUTS, c.ENV_TIMEOUT, c.ENV_STARTUP_TIMEOUT, c.ENV_GRACE_PERIOD, c.ENV_ORPHAN_AFTER),
    *(c.ENV_WEB_URLS, c.ENV_LOG_TAGS, c.ENV_GPUS, c.ENV_IMAGE),
    *("MODAL_IS_REMOTE", "MODAL_ENVIRONMENT", "MODAL_TASK_ID", "MODAL_IMAGE_ID"),
    *("NOMAD_PORT_http", "NOMAD_IP_http", "NOMAD_ALLOC_ID", "NOMAD_JOB_ID", "NOMAD_NAMESPACE", "NOMAD_DC"),
    "NOMAD_REGION",
)
"""Of the task's variables those that the replica gets. The agent's own are among the rest (raw_exec hands them on), so
nothing else is, not even names that begin so."""
PRIVATE = ("NOMAD_", "MODALNOMAD_", "VAULT_")
"""Beginnings of names that a container's other variables do not have."""
ALL_GPUS, NO_GPUS = "all", ("none", "void")
"""What NVIDIA_VISIBLE_DEVICES may be beside a list."""


def check_dispatch(environ: Mapping[str, str]) -> None:
    """Was it started by a router? Raises Refused."""
    pool, replica = environ.get(c.ENV_POOL, ""), environ.get(c.ENV_REPLICA, "")
    number, _, epoch = replica.partition(".")
    if not pool or "${" in pool or not (number.isdigit() and epoch.isdigit()):
        raise Refused(
            "this job was dispatched without its pool, number and epoch: modalnomad's router starts replicas, and one "
            "that somebody else starts (Nomad's Dispatch button, say) would get no request. Call the function instead"
        )


def first_line(environ: Mapping[str, str]) -> str:
    """What a log begins with: `shop.resize, revision 3f2a, replica 0.1: queue: 14 waiting (request abc)`."""
    line = f"{environ.get(c.ENV_APP)}.{environ.get(c.ENV_FUNCTION)}, revision {environ.get(c.ENV_REVISION)}"
    line += f", replica {environ.get(c.ENV_REPLICA)}"
    if reason := environ.get("NOMAD_META_reason"):
        line += f": {reason}"
    if request := environ.get("NOMAD_META_request_id"):
        line += f" (request {request})"
    return " ".join(line.split())


def on_node(
    environ: Mapping[str, str],
    *,
    image: str,
    image_env: Mapping[str, str],
    secrets: Mapping[str, str],
    bundle: str,
    workdir: str | None,
) -> dict[str, str]:
    """The whole environment. What comes later wins: inherited, image, secrets, then what is fixed."""
    made = {name: value for name, value in environ.items() if name in c.INHERITED or name.startswith("LC_")}
    made.update(image_env)
    made.update(secrets)
    path = image_env.get("PATH") or environ.get("PATH") or os.defpath
    made.update(PATH=f"{image}/bin{os.pathsep}{path}", VIRTUAL_ENV=image, PYTHONUNBUFFERED="1")
    _fix(made, environ)
    _cover_gpus(made, environ, container=False)
    made[c.ENV_BUNDLE] = bundle
    if workdir is not None:
        made[c.ENV_WORKDIR] = workdir
    return made


def in_container(
    environ: Mapping[str, str], *, secrets: Mapping[str, str], bundle: str, workdir: str | None
) -> dict[str, str]:
    """The same where the image is a container's: its variables are there already."""
    made = {name: value for name, value in environ.items() if not name.startswith(PRIVATE)}
    made.update(secrets)
    made.update(PYTHONUNBUFFERED="1")
    _fix(made, environ)
    _cover_gpus(made, environ, container=True)
    made[c.ENV_BUNDLE] = bundle
    if workdir is not None:
        made[c.ENV_WORKDIR] = workdir
    return made


def _fix(made: dict[str, str], environ: Mapping[str, str]) -> None:
    """What the task says counts, and where it listens is told by Nomad alone."""
    for name in (c.ENV_LISTEN, c.ENV_LIFELINE, c.ENV_CGROUPS):
        made.pop(name, None)
    made.update({name: environ[name] for name in PASSED if name in environ})


def _cover_gpus(made: dict[str, str], environ: Mapping[str, str], *, container: bool) -> None:
    """CUDA sees the devices Nomad gave this task; none where none was asked for: it must not take another's."""
    given = environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if environ.get(c.ENV_GPUS, "0") in ("", "0") or given in NO_GPUS or (not given and not container):
        made["CUDA_VISIBLE_DEVICES"] = ""
    elif given != ALL_GPUS and not container:
        made["CUDA_VISIBLE_DEVICES"] = given


def working_folder(workdir: str | None, bundle: str) -> str | None:
    """Where the image's working directory is on a node, as `render.process.working_folder` says: /root is the bundle,
    every other absolute path a folder of that name in it. None: the image names none."""
    if not workdir:
        return None
    path = os.path.normpath("/" + os.path.join("/root", workdir).lstrip("/"))
    inner = path[len("/root") :] if path == "/root" or path.startswith("/root/") else path
    return os.path.normpath(f"{bundle}/{inner.lstrip('/')}")
