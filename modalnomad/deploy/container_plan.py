"""What an image's chain means in a container: the same packages, and everything else in the order of its steps.

All packages are one resolution, as on the process driver, and installed where the first step of them stands; Debian's
packages that come later are there before them, unless a command stands between. Reads the files that steps name; starts
nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modalnomad.deploy.archive import walk
from modalnomad.deploy.bundle import files_below, inside, place
from modalnomad.deploy.ignore import IgnoreRules
from modalnomad.deploy.image_limits import LOGIN, NEVER_BASES, NEVER_STEPS, WITHOUT_EFFECT
from modalnomad.deploy.image_plan import (
    COPIED,
    ROOT,
    RUNS,
    SEES,
    ImagePlan,
    bad_python,
    secrets_of,
    step_mounts,
    take_step,
    texts,
)
from modalnomad.deploy.runtime_requirements import RUNTIME_REQUIREMENTS
from modalnomad.model.errors import Problem, UserError
from modalnomad.model.manifest import Image, ImageStep, Notice
from modalnomad.model.recipe import Call, Files, Folder, Instruction, Lines, OwnBase, Packages, Run, Variables

REGISTRIES = frozenset({"from_registry", "from_dockerhub", "from_aws_ecr", "from_gcp_artifact_registry"})
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
SHELL = ("/bin/sh", "-c")
COPY_IT = "replicas' own files are under /root; with copy=True it becomes a part of the image"


@dataclass(slots=True)
class ContainerPlan:
    """A chain, understood. `packages.problems` empty: it can be built."""

    packages: ImagePlan = field(default_factory=ImagePlan)
    """What to install, from where; problems and notices of all."""
    base: str | OwnBase | None = None
    setup: tuple[str, ...] = ()
    before: list[Instruction] = field(default_factory=list)
    """The installation comes behind these, and before the rest."""
    after: list[Instruction] = field(default_factory=list)
    context: dict[str, Path] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    calls: bool = False
    workdir: str | None = None


def plan_container(image: Image | None) -> ContainerPlan:
    """Everything a chain asks for, all problems at once. None: the platform's own image."""
    plan = ContainerPlan()
    plan.packages.requirements.extend(RUNTIME_REQUIREMENTS)
    if image is None:
        return plan
    _base(plan, image)
    steps = _Steps(plan, max((n for n, step in enumerate(image.steps) if step.kind in SEES), default=-1))
    for number, step in enumerate(image.steps):
        steps.take(step, number)
    if not steps.installed:  # only what the runner needs, which all images have: first, so that they share it
        plan.before, plan.after = [], plan.before
    for mount in image.mounts:
        try:
            inside(mount)
        except UserError as error:
            message = f"{error.message.split(':')[0]}: {COPY_IT}"
            plan.packages.problems.append(Problem(mount.where, message))
    return plan


def _base(plan: ContainerPlan, image: Image) -> None:
    packages, given, base = plan.packages, image.base_arguments, image.base
    packages.python = given.get("add_python") or image.python_version
    packages.force = bool(given.get("force_build"))
    if packages.python is not None and (message := bad_python(packages.python)):
        packages.problems.append(Problem(image.where, message))
    if base in NEVER_BASES:
        packages.problems.append(Problem(image.where, NEVER_BASES[base]))
    elif base in REGISTRIES:
        plan.base = str(given.get("tag", ""))
        if not plan.base or any(c.isspace() for c in plan.base):
            packages.problems.append(Problem(image.where, f"Image.{base}: {plan.base!r} is no name of an image"))
        plan.setup = tuple(texts(given.get("setup_dockerfile_commands")))
    elif base == "from_dockerfile":
        _told(plan, image.where, "from_dockerfile", lambda: _own(plan, given))
    elif base != "debian_slim":
        packages.problems.append(Problem(image.where, f"Image.{base} is not known to this back end"))
    if given.get("secrets"):
        packages.notices.append(Notice(code="no_effect", message=LOGIN.format(base=base), where=image.where))


def _own(plan: ContainerPlan, given: Mapping[str, object]) -> None:
    path = Path(str(given["path"]))
    folder = Path(str(given["context_dir"])) if given.get("context_dir") else path.parent
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    arguments = given.get("build_args") or {}
    assert isinstance(arguments, Mapping)
    plan.base = OwnBase(text, _context(folder), {str(name): str(value) for name, value in arguments.items()})


def _context(folder: Path) -> dict[str, Path]:
    """All files, but for those that a .dockerignore names (which the builder would leave out too)."""
    ignore = folder / ".dockerignore"
    try:
        lines = ignore.read_text("utf-8").splitlines() if ignore.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{ignore} cannot be read: {error}") from error
    patterns = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return dict(walk(folder, IgnoreRules(patterns)))


def _told(plan: ContainerPlan, where: str, kind: str, work: Callable[[], None]) -> None:
    try:
        work()
    except UserError as error:
        message = f"Image.{kind}: {error.message}" + (f" ({error.hint})" if error.hint else "")
        plan.packages.problems.append(Problem(where, message))


class _Steps:
    """Steps, one after the other."""

    def __init__(self, plan: ContainerPlan, last: int) -> None:
        """`last`: number of the last step that sees files."""
        self._plan = plan
        self._last = last
        self.installed = False
        self._commanded = False
        self._shell: tuple[str, ...] = SHELL

    def take(self, step: ImageStep, number: int) -> None:
        packages = self._plan.packages
        if step.kind in NEVER_STEPS:
            packages.problems.append(Problem(step.where, NEVER_STEPS[step.kind]))
        elif step.kind in WITHOUT_EFFECT:
            packages.notices.append(Notice(code="no_effect", message=WITHOUT_EFFECT[step.kind], where=step.where))
        elif step.kind in _LINES:
            self._check(step)
            _told(self._plan, step.where, step.kind, lambda: self._lines(step))
        else:
            # What it says of packages, names and secrets is the same here.
            take_step(packages, step, number)
            _told(self._plan, step.where, step.kind, lambda: self._instructions(step, number))

    def _check(self, step: ImageStep) -> None:
        if step.arguments.get("secrets"):
            message = f"Image.{step.kind}: secrets= is not available here: use run_commands(…, secrets=[…])"
            self._plan.packages.problems.append(Problem(step.where, message))
        if step.arguments.get("env"):
            message = f"Image.{step.kind}: env= is not available here: use Image.env before it"
            self._plan.packages.problems.append(Problem(step.where, message))
        self._plan.packages.force = self._plan.packages.force or bool(step.arguments.get("force_build"))

    def _add(self, *instructions: Instruction) -> None:
        (self._plan.after if self.installed else self._plan.before).extend(instructions)

    def _lines(self, step: ImageStep) -> None:
        words = texts(step.arguments.get("commands"))
        self._commanded = True
        if step.kind == "entrypoint":
            self._add(Lines((f"ENTRYPOINT {json.dumps(words)}",)))
        elif step.kind == "shell":
            self._shell = tuple(words)
            self._add(Lines((f"SHELL {json.dumps(words)}",)))
        else:
            folder = step.arguments.get("context_dir")
            files = _context(Path(str(folder))) if folder else {}
            files |= {name: Path(local) for name, local in (step.arguments.get("context_files") or {}).items()}
            for name, local in files.items():
                if (known := self._plan.context.setdefault(name, local)) != local:
                    raise UserError(f"both {known} and {local} would be {name} in the context of the image")
            self._plan.arguments.update(
                {str(name): str(value) for name, value in (step.arguments.get("build_args") or {}).items()}
            )
            declared = [f"ARG {name}" for name in step.arguments.get("build_args") or {}]
            self._add(Lines((*declared, *words)))

    def _instructions(self, step: ImageStep, number: int) -> None:
        match step.kind:
            case "apt_install":
                names = tuple(texts(step.arguments.get("packages")))
                early = self.installed and not self._commanded
                (self._plan.before.append if early else self._add)(Packages(names))
            case "env":
                self._add(_variables(step.arguments.get("vars") or {}))
            case "workdir":
                path = str(step.arguments.get("path", "."))
                self._plan.workdir = str(ROOT / (self._plan.workdir or ".") / path)
                self._add(Folder(self._plan.workdir))
            case "run_commands" | "run_function":
                self._commanded = True
                self._add(*self._commands(step, number))
            case kind if kind in COPIED:
                self._add(*_files(step, late=number > self._last))
            case kind if kind.startswith(("pip_", "uv_")):
                self.installed = True

    def _commands(self, step: ImageStep, number: int) -> Iterator[Instruction]:
        assert step.kind in RUNS
        own = tuple((str(name), str(value)) for name, value in (step.arguments.get("env") or {}).items())
        seen = number if secrets_of(step) else None
        if step.kind == "run_function":
            self._plan.calls = True
            yield Call(step.arguments, own, seen)
            return
        for command in texts(step.arguments.get("commands")):
            yield Run(command, own, seen, self._shell)


def _variables(given: Mapping[str, object]) -> Variables:
    values = tuple((str(name), str(value)) for name, value in given.items())
    if bad := [name for name, value in values if set("\n\r\0") & set(value)]:
        raise UserError(f"the value of {bad[0]} has more than one line, which a container's image cannot hold")
    if bad := [name for name, _ in values if not NAME.fullmatch(name)]:
        raise UserError(f"{bad[0]!r} is no name of a variable")
    return Variables(values)


_LINES = frozenset({"entrypoint", "shell", "dockerfile_commands"})


def _files(step: ImageStep, *, late: bool) -> Iterator[Files]:
    """Files that no step of the image sees, and that lie under /root, reach the replica with its source instead: an
    edit makes no new image."""
    for mount in step_mounts(step):
        there = place(mount)
        if not (late and there.is_relative_to(ROOT)):
            yield Files({f"/{path}": local for path, local in files_below(there.relative_to("/"), mount)})
