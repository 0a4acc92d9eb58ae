"""Files, commands and calls of an image as steps of its definition, and what the store needs to carry them out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalnomad_sdk.store import Inputs

from modalnomad.deploy.archive import write_archive
from modalnomad.deploy.bundle import Collected, mount_files, source_files
from modalnomad.deploy.image_plan import Call, Command, ImagePlan
from modalnomad.model.errors import UserError
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Mount, Source

CALL_TIMEOUT = 3600.0
"""Seconds, where run_function(timeout=…) says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the steps that run something need beside the image. `variables`: values of each step's secrets, by the
    step's number in the chain."""

    source: Source
    variables: Mapping[int, Mapping[str, str]] = field(default_factory=dict, repr=False)


class LaterSteps:
    """Everything after the installs. `scratch` is a folder for archives, of the caller's."""

    def __init__(self, plan: ImagePlan, scratch: Path, program: Program | None) -> None:
        self._scratch = scratch
        self._program = program
        self._archives: dict[str, Path] = {}
        self._variables: dict[int, Mapping[str, str]] = {}
        self._calls = False
        self.steps = [self._defined(number, step) for number, step in enumerate(plan.steps)]

    def _defined(self, number: int, step: Command | Call | Mount) -> dict[str, Any]:
        if isinstance(step, Mount):
            target = self._scratch / f"{number}.tar.gz"
            digest = _mount_archive(step, target)
            self._archives[digest] = target
            return {"kind": "files", "archive": digest}
        if self._program is not None and (values := self._program.variables.get(step.number)):
            self._variables[number] = values
        defined: dict[str, Any] = {
            "environment": dict(step.environment),
            "workdir": "" if step.workdir == "." else step.workdir,
        }
        if step.secrets:
            defined["secrets"] = [ref.model_dump(exclude_defaults=True) for ref in step.secrets]
        if isinstance(step, Command):
            return {"kind": "run", "command": step.command, **defined}
        self._calls = True
        return {"kind": "call", **self._call(step.arguments), **defined}

    def _call(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._program is None:
            raise UserError(f"Image.run_function({arguments['function']}) needs the program it is in")
        source = self._program.source
        module = arguments["module"]
        return {
            "source": f"{source.mode}:{source.entry}" if module == source.module else f"module:{module}",
            "function": arguments["function"],
            "args": arguments.get("args", []),
            "kwargs": arguments.get("kwargs", {}),
            "code": arguments["code"],
            "timeout": float(arguments.get("timeout", CALL_TIMEOUT)),
        }

    def add_to(self, inputs: Inputs, *, after: int) -> Inputs:
        """With the archives and values these steps need; `after`: how many steps come before them."""
        source = None
        if self._calls and self._program is not None:
            source = self._scratch / "source.tar.gz"
            write_archive(dict(source_files(self._program.source)), frozenset(), source)
        variables = {after + number: values for number, values in self._variables.items()}
        return dataclasses.replace(inputs, archives=self._archives, variables=variables, source=source)


def _mount_archive(mount: Mount, target: Path) -> Digest:
    collected = Collected()
    for path, local in mount_files(mount):
        collected.add(path, local, mount.where)
    return write_archive(collected.files, frozenset(), target)
