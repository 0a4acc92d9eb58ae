"""What runs in a user's image: standard library only, and syntax of the oldest Python it promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreters import oldest_python
from tests.support.repository import ROOT, SDK, shown, sources

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import modalnomad_sdk
names = [m.name for m in pkgutil.walk_packages(modalnomad_sdk.__path__, "modalnomad_sdk.")]
serving = []
for name in names:
    if name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"uvicorn", "httptools", "websockets", "fastapi", "starlette"}:
            raise
        serving.append(name)
print(len(names), *serving)
"""


def import_everything(python: str) -> subprocess.CompletedProcess[str]:
    """In an interpreter that sees the standard library and `sdk/`, nothing else."""
    command = [python, "-I", "-S", "-W", "error", "-c", IMPORT_EVERYTHING, str(SDK.parent)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_imports_with_nothing_installed_but_the_serving_part_of_the_runner() -> None:
    result = import_everything(sys.executable)

    assert result.returncode == 0, result.stderr
    count, *serving = result.stdout.split()
    assert int(count) >= 5
    # What serves requests needs the runtime requirements of every image; nothing else may.
    assert all(name.startswith("modalnomad_sdk.runner.") for name in serving)
    assert len(serving) <= 3, serving


def test_imports_with_the_oldest_promised_python() -> None:
    python = oldest_python()
    if python is None:
        pytest.skip("no Python 3.10 on this machine")

    result = import_everything(python)

    assert result.returncode == 0, result.stderr


def test_the_syntax_is_of_the_oldest_promised_python() -> None:
    for path in sources(SDK):
        ast.parse(path.read_text("utf-8"), filename=shown(path), feature_version=(3, 10))


def test_a_dependency_would_be_noticed(tmp_path: Path) -> None:
    package = tmp_path / "modalnomad_sdk"
    package.mkdir()
    (package / "__init__.py").write_text("import pydantic\n")
    command = [sys.executable, "-I", "-S", "-c", IMPORT_EVERYTHING, str(tmp_path)]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert "No module named 'pydantic'" in result.stderr


def test_it_is_typed_and_declares_no_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "sdk" / "pyproject.toml").read_text("utf-8"))["project"]

    assert project.get("dependencies", []) == []
    assert (SDK / "py.typed").exists()
