"""What an image's chain means on the process driver: packages to resolve together, then files and commands in order.

All packages of a chain, and what the runner needs, are one resolution, installed before anything else; a step that only
a container could carry out is a problem, and every problem of a chain is found in one pass. Reads the files that steps
name; starts nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from modalnomad.deploy import index_options, requirement_files
from modalnomad.deploy.image_limits import CONTAINER_BASES, CONTAINER_STEPS, WITHOUT_EFFECT
from modalnomad.deploy.index_options import CREDENTIALS, IndexOptions
from modalnomad.deploy.runtime_requirements import RUNTIME_REQUIREMENTS
from modalnomad.model.errors import Problem, UserError
from modalnomad.model.manifest import Image, ImageStep, Mount, Notice, SecretRef

COPIED: Mapping[str, Any] = {"add_local_file": "file", "add_local_dir": "dir", "add_local_python_source": "python"}
RUNS = frozenset({"run_commands", "run_function"})
"""Steps that run something: they see the image's files, and may take secrets."""
SEES = RUNS | {"dockerfile_commands"}
"""Those that see files copied in before them."""
ROOT = PurePosixPath("/root")
"""What containers call the folder that is a replica's own here."""
OLDEST_PYTHON = (3, 10)
"""What the SDK, which serves in every replica, runs on."""
LOCAL = re.compile(r"(-e\b|--editable\b|\.{0,2}/|~|file:)|.*@\s*file:")


@dataclass(frozen=True, slots=True)
class LockedProject:
    """A project whose uv.lock says what to install."""

    folder: Path
    arguments: tuple[str, ...]
    content: str
    """SHA-256 of its pyproject.toml and uv.lock."""


@dataclass(frozen=True, slots=True)
class Command:
    """One run_commands line, with the image's variables up to it. `workdir` is relative to the image's root folder,
    `number` is the step's in the chain."""

    command: str
    environment: tuple[tuple[str, str], ...]
    workdir: str
    number: int = 0
    secrets: tuple[SecretRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One run_function. `arguments`: module, function, args, kwargs, code and timeout, as the SDK describes them."""

    arguments: Mapping[str, Any]
    environment: tuple[tuple[str, str], ...]
    workdir: str
    number: int = 0
    secrets: tuple[SecretRef, ...] = ()


@dataclass(slots=True)
class ImagePlan:
    """A chain, understood. `problems` empty: it can be resolved and built."""

    python: str | None = None
    requirements: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    without_deps: list[str] = field(default_factory=list)
    """Requirements of steps with --no-deps."""
    projects: list[LockedProject] = field(default_factory=list)
    options: IndexOptions = field(default_factory=IndexOptions)
    install_environment: dict[str, str] = field(default_factory=dict)
    steps: list[Command | Call | Mount] = field(default_factory=list)
    """Commands and calls, and the files copied in before them, in order."""
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    apt: list[tuple[str, str]] = field(default_factory=list)
    """Debian package and where it was asked for."""
    force: bool = False
    """Resolve again, whatever is remembered."""
    problems: list[Problem] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


def plan_image(image: Image | None) -> ImagePlan:
    """Everything a chain asks for. None: the platform's own image, the runtime requirements alone."""
    plan = ImagePlan()
    plan.requirements.extend(RUNTIME_REQUIREMENTS)
    if image is None:
        return plan
    plan.python = image.python_version
    if image.base in CONTAINER_BASES:
        plan.problems.append(Problem(image.where, CONTAINER_BASES[image.base]))
    elif image.base != "debian_slim":
        plan.problems.append(Problem(image.where, f"Image.{image.base} is not known to this back end"))
    if image.python_version is not None and (message := bad_python(image.python_version)):
        plan.problems.append(Problem(image.where, message))
    plan.force = bool(image.base_arguments.get("force_build"))
    for number, step in enumerate(image.steps):
        take_step(plan, step, number)
    if any(isinstance(s, Command) and re.search(r"\bpip3?\b", s.command) for s in plan.steps):
        # A virtual environment made by uv has no pip of its own; commands written for a container expect one.
        plan.requirements.append("pip")
    while plan.steps and isinstance(plan.steps[-1], Mount):
        plan.steps.pop()  # files that no command sees reach the replica by the bundle
    return plan


def take_step(plan: ImagePlan, step: ImageStep, number: int) -> None:
    """One step taken into the plan, problems included."""
    _Step(plan, step, number).take()


def bad_python(version: str) -> str | None:
    """Why replicas cannot have it."""
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?t?", version)
    if match is None:
        return f"python_version={version!r}: a version such as '3.12' is expected"
    if (int(match[1]), int(match[2])) < OLDEST_PYTHON:
        return f"python_version={version!r}: replicas need Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    return None


def step_mounts(step: ImageStep) -> Iterator[Mount]:
    """Files an add_local_* step with copy=True takes in; none for other steps."""
    if step.kind not in COPIED:
        return
    ignore = tuple(step.arguments.get("ignore") or ())
    remote = str(step.arguments.get("remote") or step.arguments.get("remote_path") or "/root/")
    for local in step.files:
        yield Mount(kind=COPIED[step.kind], local=local, remote=remote, ignore=ignore, where=step.where)


def step_secrets(image: Image | None) -> dict[int, tuple[SecretRef, ...]]:
    """Secrets of the steps that run something, by the step's number."""
    steps = enumerate(image.steps if image is not None else ())
    return {number: refs for number, step in steps if (refs := secrets_of(step))}


def secrets_of(step: ImageStep) -> tuple[SecretRef, ...]:
    """Only steps that run something may have any."""
    given = step.arguments.get("secrets", ()) if step.kind in RUNS else ()
    return tuple(SecretRef.model_validate(ref) for ref in given)


def late_mounts(image: Image) -> Iterator[Mount]:
    """Copied files that no step of the image sees: they reach the replica by the bundle. All others are the image's."""
    late: list[Mount] = []
    for step in image.steps:
        if step.kind in SEES:
            late.clear()
        late.extend(step_mounts(step))
    yield from late


def next_workdir(current: str | None, path: str) -> str:
    """Working directory after `workdir(path)`, relative to the replica's root folder (`.`: that folder).

    Relative paths start at the one before, at first /root; an absolute path elsewhere means a folder of that name
    inside the replica's own: nothing here may write into the machine's."""
    full = PurePosixPath(os.path.normpath(ROOT / (current or ".") / path))
    return (full.relative_to(ROOT) if full.is_relative_to(ROOT) else full.relative_to("/")).as_posix()


class _Step:
    """One step taken into the plan."""

    def __init__(self, plan: ImagePlan, step: ImageStep, number: int) -> None:
        self.plan = plan
        self.step = step
        self.number = number
        self.arguments = step.arguments
        self.pip = step.kind.startswith("pip_")

    def problem(self, message: str) -> None:
        self.plan.problems.append(Problem(self.step.where, f"Image.{self.step.kind}: {message}"))

    def take(self) -> None:
        kind = self.step.kind
        if kind in CONTAINER_STEPS:
            self.plan.problems.append(Problem(self.step.where, CONTAINER_STEPS[kind]))
            return
        if kind in WITHOUT_EFFECT:
            self.plan.notices.append(Notice(code="no_effect", message=WITHOUT_EFFECT[kind], where=self.step.where))
            return
        take = _TAKERS.get(kind)
        if take is None:
            self.problem("this back end does not know the step")
            return
        self._common()
        try:
            take(self)
        except UserError as error:
            self.problem(error.message + (f" ({error.hint})" if error.hint else ""))

    def _common(self) -> None:
        if self.arguments.get("secrets") and self.step.kind not in RUNS:
            self.problem(
                "secrets= is not available while packages are installed: write ${NAME} where the value belongs, with "
                "NAME in the environment of this command"
            )
        if refusal := self.arguments.get("refusal"):
            self.problem(refusal)
        if self.arguments.get("gpu"):
            message = f"Image.{self.step.kind}: gpu= has no effect here, the step sees this machine's devices"
            self.plan.notices.append(Notice(code="no_effect", message=message, where=self.step.where))
        self.plan.force = self.plan.force or bool(self.arguments.get("force_build"))

    # --- packages ----------------------------------------------------------------------------------------------

    def _require(self, lines: list[str], no_deps: bool = False) -> None:
        self.plan.install_environment.update(self.arguments.get("env") or {})
        for line in lines:
            if LOCAL.match(line):
                self.problem(
                    f"{line!r} is a local path, which other hosts do not have: publish the package, or add its "
                    "source with add_local_python_source"
                )
            elif CREDENTIALS.search(line) and "${" not in line:
                shown = CREDENTIALS.sub(index_options.MASK, line)
                self.problem(f"{shown!r} holds credentials, which would end up in the image: write them as ${{NAME}}")
            elif line.startswith("-"):
                self.problem(f"{line!r} is an option, not a package: use extra_options=")
            else:
                (self.plan.without_deps if no_deps else self.plan.requirements).append(line)

    def _options(self) -> bool:
        """Index options of the step; whether it is to be installed without dependencies."""
        arguments, options = self.arguments, self.plan.options
        extra = arguments.get("extra_index_url")
        options.add(index_url=arguments.get("index_url"), extra_index_url=extra)
        if extra and self.pip and not arguments.get("index_url"):
            options.strategy = options.strategy or "unsafe-best-match"
        options.add_links(arguments.get("find_links"))
        if arguments.get("pre"):
            options.prerelease = "allow"
        no_deps, unknown = index_options.parse_options(arguments.get("extra_options") or "", options, pip=self.pip)
        if unknown:
            self.problem(f"extra_options: {' '.join(unknown)} is not supported by this back end")
        return no_deps

    def packages(self) -> None:
        no_deps = self._options()
        self._require(texts(self.arguments.get("packages")), no_deps)
        for file in self.step.files:
            self._requirements_file(Path(file), no_deps)

    def requirements_file(self) -> None:
        no_deps = self._options()
        for file in self.step.files:
            self._requirements_file(Path(file), no_deps)

    def _requirements_file(self, path: Path, no_deps: bool) -> None:
        read = requirement_files.read_requirements(path)
        self._require(read.requirements, no_deps)
        self.plan.constraints.extend(read.constraints)
        for line in read.options:
            name, _, value = line.replace("=", " ", 1).partition(" ")
            _, unknown = index_options.parse_options(
                [name, *filter(None, [value.strip()])], self.plan.options, pip=True
            )
            if unknown:
                self.problem(f"{path}: option {' '.join(unknown)} is not supported by this back end")

    def pyproject(self) -> None:
        no_deps = self._options()
        extras = texts(self.arguments.get("optional_dependencies"))
        for file in self.step.files:
            self._require(requirement_files.read_pyproject(Path(file), extras), no_deps)

    def uv_sync(self) -> None:
        files = {Path(file).name: Path(file) for file in self.step.files}
        project = files.get("pyproject.toml")
        folder = project.parent if project else Path(str(self.arguments.get("uv_project_dir") or ".")).absolute()
        frozen = self.arguments.get("frozen", True) and not self.arguments.get("not_frozen")
        arguments = ["--frozen"] if frozen else ["--locked"]
        arguments += [word for group in texts(self.arguments.get("groups")) for word in ("--group", group)]
        arguments += [word for extra in texts(self.arguments.get("extras")) for word in ("--extra", extra)]
        content = hashlib.sha256()
        for name in ("pyproject.toml", "uv.lock"):
            try:
                content.update((folder / name).read_bytes())
            except OSError as error:
                raise UserError(f"{folder / name} cannot be read: {error.strerror}", "run `uv lock` there") from error
        _, unknown = index_options.parse_options(
            self.arguments.get("extra_options") or "", self.plan.options, pip=False
        )
        if unknown:
            self.problem(f"extra_options: {' '.join(unknown)} is not supported by this back end")
        self.plan.projects.append(LockedProject(folder, tuple(arguments), content.hexdigest()))

    def apt(self) -> None:
        for package in texts(self.arguments.get("packages")):
            if re.fullmatch(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?(=\S+)?", package) is None:
                self.problem(f"{package!r} is not the name of a Debian package")
            else:
                self.plan.apt.append((package.partition("=")[0], self.step.where))

    # --- everything else -----------------------------------------------------------------------------------------

    def env(self) -> None:
        for name, value in (self.arguments.get("vars") or {}).items():
            if str(name).startswith(("MODALNOMAD_", "MODAL_")):
                self.problem(f"{name} is reserved for the platform")
            else:
                self.plan.environment[str(name)] = str(value)

    def workdir(self) -> None:
        self.plan.workdir = next_workdir(self.plan.workdir, str(self.arguments.get("path", ".")))

    def commands(self) -> None:
        for command in texts(self.arguments.get("commands")):
            self.plan.steps.append(Command(command, *self._surroundings()))

    def call(self) -> None:
        self.plan.steps.append(Call(self.arguments, *self._surroundings()))

    def _surroundings(self) -> tuple[tuple[tuple[str, str], ...], str, int, tuple[SecretRef, ...]]:
        own = {k: str(v) for k, v in (self.arguments.get("env") or {}).items()}
        environment = tuple((self.plan.environment | own).items())
        return environment, self.plan.workdir or ".", self.number, secrets_of(self.step)

    def files(self) -> None:
        self.plan.steps.extend(step_mounts(self.step))


def texts(value: Any) -> list[str]:
    """A list that may be nested, as Modal accepts it, or one text."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in texts(item)]


_TAKERS: Mapping[str, Callable[[_Step], None]] = {
    "pip_install": _Step.packages,
    "uv_pip_install": _Step.packages,
    "pip_install_from_requirements": _Step.requirements_file,
    "pip_install_from_pyproject": _Step.pyproject,
    "uv_sync": _Step.uv_sync,
    "apt_install": _Step.apt,
    "env": _Step.env,
    "workdir": _Step.workdir,
    "run_commands": _Step.commands,
    "run_function": _Step.call,
    "add_local_file": _Step.files,
    "add_local_dir": _Step.files,
    "add_local_python_source": _Step.files,
}
