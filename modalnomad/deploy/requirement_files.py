"""Files that name packages: requirements.txt with what it includes, pyproject.toml. Nothing is resolved here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modalnomad.model.errors import UserError

_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(slots=True)
class Requirements:
    """Lines as their author wrote them, includes put in place."""

    requirements: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    """Option lines (`--index-url …`), one option and its value a line."""


def read_requirements(path: Path) -> Requirements:
    """Raises UserError for a file that is missing or includes itself."""
    found = Requirements()
    _read(path, found, found.requirements, ())
    return found


def _read(path: Path, found: Requirements, into: list[str], above: tuple[Path, ...]) -> None:
    if path in above:
        raise UserError(f"{path} includes itself")
    for line in _lines(path):
        if match := re.fullmatch(r"(-r|--requirement|-c|--constraint)[\s=]*(.+)", line):
            constraint = match[1] in ("-c", "--constraint")
            _read(path.parent / match[2], found, found.constraints if constraint else into, (*above, path))
        elif line.startswith("-") and not re.match(r"(-e|--editable)\b", line):
            found.options.append(line)
        else:
            into.append(line)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = (_COMMENT.sub("", line).strip() for line in joined.splitlines())
    return [re.sub(r"\s+", " ", line) for line in lines if line]


def read_pyproject(path: Path, extras: Sequence[str]) -> list[str]:
    """`project.dependencies` and the named optional ones. Raises UserError."""
    try:
        project = tomllib.loads(path.read_text("utf-8")).get("project", {})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    if not isinstance(project, dict) or "dependencies" not in project:
        raise UserError(f"{path} has no project.dependencies", "list the packages there")
    optional = project.get("optional-dependencies", {})
    found = list(project["dependencies"])
    for extra in extras:
        if extra not in optional:
            known = ", ".join(sorted(optional)) or "none"
            raise UserError(f"{path} has no optional dependencies {extra!r} (there: {known})")
        found.extend(optional[extra])
    return found
