"""An image as steps of a container's build: what a chain means where replicas have a file system of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INDEX = -1
"""The number that the variables of the package index stand under, among those of steps."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Of a Dockerfile, as they are."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variables:
    """Of everything that comes later, and of replicas. Values are one line each."""

    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Folder:
    """What commands that come later, and replicas, work in; absolute."""

    path: str


@dataclass(frozen=True, slots=True)
class Packages:
    """Debian's."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """Python packages. `requirements` and `constraints`: files for pip."""

    requirements: str
    constraints: str = ""
    options: tuple[str, ...] = ()
    verify: bool = False
    """Every line has hashes."""
    dependencies: bool = False
    """What the packages need, and the file does not name, is installed too."""


@dataclass(frozen=True, slots=True)
class Run:
    """A shell command. `number`: the step whose secrets it sees; None: it has none."""

    command: str
    environment: tuple[tuple[str, str], ...] = ()
    number: int | None = None
    shell: tuple[str, ...] = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the program. `call`: what the SDK's runner reads (source, function, args, kwargs, timeout)."""

    call: Mapping[str, Any]
    environment: tuple[tuple[str, str], ...] = ()
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """Absolute path in the image → file of this machine."""

    files: Mapping[str, Path]


Instruction = Lines | Variables | Folder | Packages | Install | Run | Call | Files


@dataclass(frozen=True, slots=True)
class OwnBase:
    """A Dockerfile that is built first. `context`: path in its context → file."""

    dockerfile: str
    context: Mapping[str, Path] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One image. `base` None: the settings' own, of Python `python`; a text: that image; else it is built."""

    base: str | OwnBase | None = None
    python: str | None = None
    """`3.12`, or `3.12.4`; None: whatever `python3` is in the base."""
    setup: tuple[str, ...] = ()
    """Lines of a Dockerfile before anything else."""
    instructions: tuple[Instruction, ...] = ()
    context: Mapping[str, Path] = field(default_factory=dict)
    """What COPY of `Lines` may name."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Build arguments of `Lines`."""
    source: Mapping[str, Path] = field(default_factory=dict)
    """The program's own files, for calls."""
    variables: Mapping[int, Mapping[str, str]] = field(default_factory=dict, repr=False)
    """Of secrets and of the package index, by step. They do not count for what the image is."""
    hidden: frozenset[str] = field(default=frozenset(), repr=False)
    """What no output may show."""
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    force: bool = False
    """Build, whatever is there."""
