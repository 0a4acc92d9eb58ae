"""The layers hold, and the linter that says so does notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'sdk'}", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_layers_hold() -> None:
    result = lint(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("modalnomad/kit/clock.py", "import modalnomad.settings", "The platform reads top-down"),
        ("modalnomad/model/ids.py", "import asyncio", "Decisions are pure"),
        ("sdk/modalnomad_sdk/contract.py", "import pydantic", "User code never drags the platform"),
    ],
)
def test_a_crossed_layer_is_noticed(tmp_path: Path, file: str, line: str, contract: str) -> None:
    for name in ("modalnomad", "sdk"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")

    result = lint(tmp_path)

    assert result.returncode == 1, result.stdout + result.stderr
    assert any(contract in shown and "BROKEN" in shown for shown in result.stdout.splitlines())
