"""A replica as a child process: command line, working directory, environment. Pure; starts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from modalnomad_sdk import contract

from modalnomad.model.replica import ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.render.environment import modal_environment

INHERITED: Final = contract.INHERITED
"""Variables of the platform's own environment that replicas get too, besides LC_* and PATH; no others."""

ROOT: Final = PurePosixPath("/root")
"""Where a bundle lies in Modal's containers; paths under it mean the replica's own folder here."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to spawn. `environment` holds secret values and is not shown."""

    argv: tuple[str, ...]
    cwd: Path
    environment: dict[str, str] = field(repr=False)


def process_spec(
    revision: Revision,
    key: ReplicaKey,
    *,
    image: Path,
    runner: Path,
    bundle: Path,
    inherited: Mapping[str, str],
    secrets: Mapping[str, str],
    variables: Mapping[str, str],
) -> ProcessSpec:
    """`image` is the environment's folder, `bundle` the replica's own copy, `variables` those of the contract.

    What comes later wins: inherited, image, secrets, Modal's reserved names, the contract.
    """
    image_env = dict(revision.image.env)
    environment = {name: value for name, value in inherited.items() if name in INHERITED or name.startswith("LC_")}
    environment |= image_env
    environment |= secrets
    environment |= {
        "PATH": os.pathsep.join((str(image / "bin"), image_env.get("PATH") or inherited.get("PATH") or os.defpath)),
        "VIRTUAL_ENV": str(image),
        # Lines reach the log when they are written, also those of Python programs the user's code starts.
        "PYTHONUNBUFFERED": "1",
    }
    environment |= modal_environment(revision, key)
    environment |= variables
    environment[contract.ENV_BUNDLE] = str(bundle)
    workdir = working_folder(revision.image.workdir, bundle)
    if workdir is not None:
        environment[contract.ENV_WORKDIR] = str(workdir)
    return ProcessSpec(
        argv=(str(image / "bin" / "python"), str(runner)),
        cwd=workdir or bundle,
        environment=environment,
    )


STARTUP_NAMES: Final = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
"""Beginnings of names that count when a process starts and never again."""


def template_spec(
    revision: Revision, *, image: Path, runner: Path, folder: Path, inherited: Mapping[str, str]
) -> ProcessSpec:
    """A warm template of the revision's image, to be given the number of its socket as its last argument.

    Its environment is that of a replica as far as it counts at the start of a process, and nothing of the App: no
    secret, no name, no GPU. `folder`, inside the run, marks it and its descendants as the run's.
    """
    needed = {name: value for name, value in inherited.items() if name in INHERITED or name.startswith("LC_")}
    needed |= dict(revision.image.env)
    environment = {
        name: value
        for name, value in needed.items()
        if name.startswith(STARTUP_NAMES) or name in {"HOME", "USER", "LOGNAME", "TMPDIR", "TZ"}
    }
    environment |= {
        "PATH": os.pathsep.join((str(image / "bin"), inherited.get("PATH") or os.defpath)),
        "VIRTUAL_ENV": str(image),
        "PYTHONUNBUFFERED": "1",
        contract.ENV_BUNDLE: str(folder),
    }
    return ProcessSpec(
        argv=(str(image / "bin" / "python"), str(runner), "template"), cwd=folder, environment=environment
    )


def working_folder(workdir: str | None, bundle: Path) -> Path | None:
    """The image's working directory on this machine, None when it names none.

    /root and what is under it are the replica's own folder, as relative paths are. Every other absolute path is a
    folder of the same name inside it: a program must not write into the machine's own.
    """
    if not workdir:
        return None
    path = PurePosixPath("/" + os.path.normpath(ROOT / workdir).lstrip("/"))
    inner = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.relative_to("/")
    return bundle / inner
