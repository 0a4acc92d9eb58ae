"""Packages of an image → a pinned set with hashes, by `uv pip compile`, remembered on disk.

The same chain on the same Python and platform gives the same set without starting any process, until it is forgotten
(`image prune`) or asked for with `force_build=True`: what an index offers tomorrow does not change a deployed image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modalnomad_sdk.store import Child, CommandFailed, Interpreter, uv_environment
from modalnomad_sdk.store.build import out_of_space

from modalnomad.deploy.image_plan import ImagePlan, LockedProject
from modalnomad.deploy.runtime_requirements import RUNTIME_REQUIREMENTS
from modalnomad.model.errors import BackendRefused, ImageBuildFailed

SCHEMA = 1
_HASH = re.compile(r"--hash=(\w+:[0-9a-f]+)")
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^]]*])?\s*(==\s*[^\s;]+)?")


RESOLVED = ".resolved"
"""Folder in the image store where results are remembered."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Install steps of a definition, where they are remembered, and the images made with them."""

    path: Path
    installs: tuple[dict[str, Any], ...]
    images: frozenset[str] = frozenset()


class Resolver:
    """Resolves plans. `folder` keeps the results; `uv` is called for only when something must be resolved. `target`:
    uv's options for another machine than this one."""

    def __init__(self, folder: Path, uv: Callable[[], Path], target: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._uv = uv
        self._target = target

    def aimed(self, target: tuple[str, ...]) -> Resolver:
        """The same for another machine, which the interpreter's version and platform must say too."""
        return Resolver(self.folder, self._uv, target)

    def resolve(
        self, plan: ImagePlan, interpreter: Interpreter, child: Child, report: Callable[[str], None]
    ) -> Resolved:
        """Raises ImageBuildFailed with the resolver's words; BuildCancelled."""
        path = self.folder / f"{self.key(plan, interpreter)}.json"
        if not plan.force and (known := _remembered(path)) is not None:
            return known
        report(f"resolving packages for Python {interpreter.version}")
        lines = list(plan.requirements)
        for project in plan.projects:
            lines.extend(self._exported(project, child))
        installs = [self._compile(plan, interpreter, child, lines)]
        if plan.without_deps:
            installs.append(self._compile(plan, interpreter, child, plan.without_deps, "--no-deps"))
        resolved = Resolved(path, tuple(installs))
        _remember(resolved)
        return resolved

    def note(self, resolved: Resolved, digest: str) -> None:
        """An image was made with it: `forget` keeps it as long as the image lives."""
        if digest not in resolved.images:
            _remember(replace(resolved, images=resolved.images | {digest}))

    def forget(self, removed: Collection[str]) -> int:
        """Forget what was resolved for these images and no other, and what never became one; how many."""
        count = 0
        for path in self.folder.glob("*.json"):
            known = _remembered(path)
            if known is None or known.images <= set(removed):
                path.unlink(missing_ok=True)
                count += 1
        return count

    def key(self, plan: ImagePlan, interpreter: Interpreter) -> str:
        """SHA-256 of everything the result follows from. Addresses count without their credentials."""
        content = {
            "schema": SCHEMA,
            "python": asdict(interpreter),
            "runtime": RUNTIME_REQUIREMENTS,
            "requirements": plan.requirements,
            "constraints": plan.constraints,
            "without_deps": plan.without_deps,
            "projects": [[list(p.arguments), p.content] for p in plan.projects],
            "options": [plan.options.masked()[0], plan.options.arguments],
            "environment": plan.install_environment,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _compile(
        self, plan: ImagePlan, interpreter: Interpreter, child: Child, lines: list[str], *options: str
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="modalnomad-resolve-") as name:
            folder = Path(name)
            (folder / "requirements.in").write_text("\n".join(lines) + "\n", "utf-8")
            (folder / "constraints.in").write_text("\n".join(plan.constraints) + "\n", "utf-8")
            command = [
                *(str(self._uv()), "pip", "compile", "requirements.in", "--constraints", "constraints.in"),
                *("--output-file", "pinned.txt", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
                *("--no-header", "--no-annotate", "--quiet", "--python", interpreter.executable),
                *self._target,
                *plan.options.arguments,
                *options,
            ]
            environment = uv_environment(plan.install_environment | plan.options.environment())
            try:
                child.run(command, cwd=folder, environment=environment)
            except CommandFailed as error:
                raise _failure(error) from error
            text = (folder / "pinned.txt").read_text("utf-8")
        return _pinned(text, [*lines, *plan.constraints])

    def _exported(self, project: LockedProject, child: Child) -> list[str]:
        """A locked project's packages as `name==version` lines with hashes."""
        with tempfile.TemporaryDirectory(prefix="modalnomad-export-") as name:
            target = Path(name) / "locked.txt"
            command = [
                *(str(self._uv()), "export", "--project", str(project.folder), "--format", "requirements-txt"),
                *("--no-emit-workspace", "--no-header", "--no-annotate", "--quiet", "--no-dev"),
                *("--output-file", str(target), *project.arguments),
            ]
            try:
                child.run(command, cwd=project.folder, environment=uv_environment())
            except CommandFailed as error:
                raise ImageBuildFailed(
                    f"the lock of {project.folder} cannot be used", error.output, "run `uv lock` in that folder"
                ) from error
            text = target.read_text("utf-8")
        return _joined(text)


def _failure(error: CommandFailed) -> ImageBuildFailed | BackendRefused:
    if out_of_space(error.output):
        return BackendRefused("no space left on the device while packages were resolved", "free some space there")
    hint = None
    names = [re.split(r"[>=; ]", requirement)[0] for requirement in RUNTIME_REQUIREMENTS]
    if blamed := [f"{name}>=" for name in names if f"require {name}>=" in error.output or f" {name}>=" in error.output]:
        listed = ", ".join(r for r in RUNTIME_REQUIREMENTS if any(r.startswith(b) for b in blamed))
        hint = f"what serves requests needs {listed} in the same environment: loosen the pin that excludes it"
    elif error.status in (127, 137):
        hint = "the uv program could not run to its end"
    return ImageBuildFailed("the packages of the image cannot be resolved", error.output, hint)


def _joined(text: str) -> list[str]:
    lines = re.sub(r"\\\r?\n", " ", text).splitlines()
    cleaned = (re.sub(r"\s+", " ", line).strip() for line in lines)
    return [line for line in cleaned if line and not line.startswith("#")]


def _pinned(text: str, asked: list[str]) -> dict[str, Any]:
    """uv's output as an install step: one package a line, sorted, hashes behind it.

    Where the user wrote hashes beside an exact version, only those count. Raises ImageBuildFailed."""
    wanted = _asked_hashes(asked)
    lines: list[str] = []
    complete = True
    for line in sorted(_joined(text), key=str.lower):
        requirement = line.split(" --hash=", 1)[0].strip()
        if re.match(r"-e\b|[./~]|file:", requirement) or "@ file:" in requirement:
            raise ImageBuildFailed("a package of the image is a local path, which other hosts do not have", requirement)
        found = _HASH.findall(line)
        own = wanted.get(_normal(requirement))
        if own is not None and not (kept := [h for h in found if h in own]) and found:
            raise ImageBuildFailed(
                f"no file of {requirement} has one of the hashes asked for",
                "\n".join(sorted(own)),
                "correct the hashes",
            )
        hashes = sorted(kept if own is not None and found else found)
        complete = complete and bool(hashes)
        lines.append(" ".join([requirement, *(f"--hash={value}" for value in hashes)]))
    # Packages from a repository have no hash (uv pins their commit): then only what has hashes is checked.
    return {"kind": "install", "requirements": "".join(f"{line}\n" for line in lines), "verify": complete}


def _asked_hashes(asked: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in asked:
        if hashes := _HASH.findall(line):
            found.setdefault(_normal(line), set()).update(hashes)
    return found


def _normal(requirement: str) -> str:
    """`Foo_Bar[x] == 1.0 …` → `foo-bar==1.0`."""
    match = _NAME.match(requirement)
    if match is None:
        return requirement
    return re.sub(r"[-_.]+", "-", match[1]).lower() + re.sub(r"\s", "", match[2] or "")


def _remembered(path: Path) -> Resolved | None:
    try:
        known = json.loads(path.read_text("utf-8"))
        return Resolved(path, tuple(known["installs"]), frozenset(known["images"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Not there, or not readable: resolved again.
        return None


def _remember(resolved: Resolved) -> None:
    path = resolved.path
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_text(json.dumps({"installs": resolved.installs, "images": sorted(resolved.images)}), "utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BackendRefused(f"{path.parent} cannot be written: {error.strerror}", "free some space there") from error
