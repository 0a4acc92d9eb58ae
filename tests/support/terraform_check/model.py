"""Terraform's modules as data: what each folder declares, and where."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.hcl import Block, HclError, Reference, Value, parse
from tests.support.repository import ROOT, shown

Texts = Mapping[str, str]
"""Path below the checkout → content."""
Schema = Mapping[str, Any]
"""As `terraform_schema.schema` has it."""


class Finding(NamedTuple):
    """One thing that is wrong, and what to write instead."""

    file: str
    line: int
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.cure}"


@dataclass(frozen=True)
class Placed:
    """A block at the top of a file."""

    file: str
    block: Block

    @property
    def address(self) -> str:
        """As references name it: `nomad_job.router`, `data.nomad_jwks.all`, `var.name`."""
        kind = {"resource": (), "variable": ("var",)}.get(self.block.kind, (self.block.kind,))
        return ".".join((*kind, *self.block.labels))

    @property
    def repeated(self) -> bool:
        """It has `count` or `for_each`: references need an index."""
        return bool({"count", "for_each"} & set(self.block.arguments))

    def finding(self, line: int, what: str, cure: str) -> Finding:
        """Something wrong in it."""
        return Finding(self.file, line, what, cure)


@dataclass(frozen=True)
class Module:
    """One folder of `.tf` files."""

    folder: str
    blocks: tuple[Placed, ...]

    @property
    def is_root(self) -> bool:
        """People run Terraform in it; others are called."""
        return "examples" in self.folder.split("/")

    def of(self, *kinds: str) -> Iterator[Placed]:
        """Top blocks of these kinds."""
        return (placed for placed in self.blocks if placed.block.kind in kinds)

    def resources(self, *types: str, kind: str = "resource") -> Iterator[Placed]:
        """Of these types."""
        return (placed for placed in self.of(kind) if placed.block.labels[0] in types)

    @functools.cached_property
    def variables(self) -> dict[str, Placed]:
        """By name."""
        return {placed.block.labels[0]: placed for placed in self.of("variable")}

    @functools.cached_property
    def outputs(self) -> dict[str, Placed]:
        """By name."""
        return {placed.block.labels[0]: placed for placed in self.of("output")}

    @functools.cached_property
    def calls(self) -> dict[str, Placed]:
        """Blocks `module` by name."""
        return {placed.block.labels[0]: placed for placed in self.of("module")}

    @functools.cached_property
    def locals(self) -> dict[str, tuple[Placed, Value]]:
        """By name, with the block that has it."""
        return {name: (placed, value) for placed in self.of("locals") for name, value in placed.block.arguments.items()}

    @functools.cached_property
    def objects(self) -> dict[str, Placed]:
        """Resources, data sources (also those within `check`) and ephemerals by address."""
        found = {placed.address: placed for placed in self.of("resource", "data", "ephemeral")}
        for check in self.of("check"):
            for block in check.block.named("data"):
                placed = Placed(check.file, block)
                found[placed.address] = placed
        return found

    def references(self) -> Iterator[tuple[Placed, Reference]]:
        """All, but those in the types of variables."""
        for placed in self.blocks:
            for reference in referred(placed.block):
                yield placed, reference

    def called(self, call: Placed) -> str | None:
        """Folder that a `module` block names, `None` where it cannot be told."""
        source = call.block.arguments.get("source")
        if source is None or not isinstance(source.literal, str):
            return None
        return posixpath.normpath(posixpath.join(self.folder, source.literal))


NAMES_THINGS = {
    "variable": {"type"},
    "dynamic": {"iterator"},
    "lifecycle": {"ignore_changes"},
    "resource": {"provider"},
    "data": {"provider"},
    "ephemeral": {"provider"},
    "module": {"providers"},
    "moved": {"from", "to"},
    "import": {"to", "provider"},
    "removed": {"from"},
}
"""Arguments that are no expressions."""


def referred(block: Block) -> Iterator[Reference]:
    """What a block and those within read."""
    for inner in block.everywhere():
        for name, value in inner.arguments.items():
            if name not in NAMES_THINGS.get(inner.kind, ()):
                yield from value.references


def texts() -> dict[str, str]:
    """Every `.tf` file of the checkout."""
    files = sorted((ROOT / "terraform").rglob("*.tf"))
    return {shown(path): path.read_text("utf-8") for path in files if ".terraform" not in path.parts}


def modules(files: Texts) -> dict[str, Module]:
    """By folder. Raises `hcl.HclError` with the file's name."""
    folders: dict[str, list[Placed]] = {}
    for name, text in sorted(files.items()):
        try:
            blocks = [Placed(name, block) for block in parse(text).blocks]
        except HclError as error:
            raise HclError(error.line, f"{name}: {error}") from None
        folders.setdefault(Path(name).parent.as_posix(), []).extend(blocks)
    return {folder: Module(folder, tuple(blocks)) for folder, blocks in folders.items()}
