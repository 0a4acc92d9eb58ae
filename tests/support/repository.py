"""The checkout as data: which files are committed, what is in them."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PLATFORM = ROOT / "modalnomad"
SDK = ROOT / "sdk" / "modalnomad_sdk"


@functools.cache
def committed() -> tuple[Path, ...]:
    """Every file git knows or would take; without git (an unpacked archive) every file outside hidden folders."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not any(p.startswith(".v") for p in path.relative_to(ROOT).parts)]
    return tuple(path for path in found if path.is_file())


def sources(*folders: Path) -> Iterator[Path]:
    """Python files below the folders."""
    for folder in folders:
        yield from sorted(folder.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def shown(path: Path) -> str:
    """Relative to the checkout, for messages."""
    return path.relative_to(ROOT).as_posix()


def persona(name: str) -> Path:
    """A Modal program that misbehaves in the way its name says."""
    path = ROOT / "tests" / "support" / "personas" / f"{name}.py"
    assert path.exists(), f"no such persona: {name}"
    return path
