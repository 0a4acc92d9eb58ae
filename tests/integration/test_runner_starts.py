"""The ways to start a runner: its file, as a module, as an archive (zipapp). Programs see no difference."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import PYTHON, RUNNER, drain_when_idle, running

SDK = RUNNER.parent.parent

PROGRAM = """
    import multiprocessing, sys
    import modal
    app = modal.App("app")

    def square(x):
        return modal.__name__, x * x

    @app.function()
    @modal.fastapi_endpoint()
    def f():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            squares = pool.map(square, [7])
        return sys.path, sys.argv, modal.__name__, modal.is_local(), squares
"""


def archive(folder: Path) -> Path:
    """The SDK alone, with the runner's entry as its own."""
    source = folder / "source"
    shutil.copytree(SDK, source / SDK.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(RUNNER, source)
    zipapp.create_archive(source, folder / "runner.pyz")
    return folder / "runner.pyz"


@pytest.fixture(params=["file", "module", "archive"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    if request.param == "archive":
        return (PYTHON, str(archive(tmp_path_factory.mktemp("archive"))))
    return (PYTHON, "-m", "modalnomad_sdk.runner") if request.param == "module" else (PYTHON, str(RUNNER))


def test_a_replica_lives_however_it_was_started(tmp_path: Path, command: tuple[str, ...]) -> None:
    extra = {"PYTHONPATH": str(SDK.parent)} if "-m" in command else {}
    with running(tmp_path, PROGRAM, command=command, extra=extra) as runner:
        runner.ready()
        path, arguments, name, local, squares = runner.ask("/").json()
        assert path[0] == str(tmp_path)
        assert not any(entry.endswith("runner") for entry in path)
        assert (arguments, name, local, squares) == (["prog.py"], "modalnomad_sdk", False, [["modalnomad_sdk", 49]])
        drain_when_idle(runner)
        assert runner.wait() == c.Exit.OK
        assert runner.err == ""


def test_an_archive_needs_nothing_but_itself(tmp_path: Path) -> None:
    """Without site-packages, from another folder: what is missing is the configuration, not the SDK."""
    found = subprocess.run(
        [sys.executable, "-I", "-S", str(archive(tmp_path))], cwd="/", capture_output=True, text=True, check=False
    )
    assert found.returncode == c.Exit.BAD_CONFIGURATION
    assert c.ENV_CONTRACT in found.stderr
