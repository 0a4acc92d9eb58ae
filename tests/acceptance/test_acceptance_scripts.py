"""The commands a newcomer runs first."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.leftovers import family, wait_gone
from tests.support.repository import ROOT
from tests.support.serve import command_environment, shared_home


def tools(folder: Path, *names: str) -> Path:
    """A folder for PATH with these programs and no other."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
    return folder


def test_demo_prints_a_curl_line_that_works_when_pasted() -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    demo = subprocess.Popen(
        [str(ROOT / "scripts" / "demo")],
        env={**command_environment(shared_home()), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    serving = threading.Event()

    def read() -> None:
        assert demo.stdout is not None
        for line in demo.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                serving.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert serving.wait(120), lines
        (curl,) = (line.strip() for line in lines if line.strip().startswith("curl "))
        url = re.search(r"http://[a-z0-9-]+\.localhost:\d+", "".join(lines))
        assert url is not None

        answer = subprocess.run(["sh", "-c", f"{curl} -sS"], capture_output=True, text=True, timeout=60, check=True)
        by_name = subprocess.run(["curl", "-sS", url[0]], capture_output=True, text=True, timeout=60, check=True)

        assert answer.stdout == by_name.stdout == '"Hello, world!"'
        everyone = family(demo.pid)
    finally:
        demo.send_signal(signal.SIGINT)
        status = demo.wait(40)
        reader.join()
        assert demo.stdout is not None
        demo.stdout.close()
    assert status == 0, "".join(lines)
    wait_gone(everyone)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What scripts/setup reads, and no environment yet."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("scripts", "requirements", "sdk/pyproject.toml", "pyproject.toml"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return folder


@pytest.mark.parametrize(
    ("python", "says"),
    [
        (None, "no Python 3.11 or newer"),
        ("#!/bin/sh\nexit 1\n", "no Python 3.11 or newer"),
        ('#!/bin/sh\ncase "$*" in *venv*|*pip*) exit 1;; esac\nexit 0\n', "install its venv module"),
    ],
    ids=["no python", "an old python", "a python without venv and pip"],
)
def test_setup_says_in_one_line_what_is_missing(checkout: Path, tmp_path: Path, python: str | None, says: str) -> None:
    path = tools(tmp_path / "bin", "sh", "dirname", "cat", "cksum", "tr", "head", "rm", "mktemp")
    if python is not None:
        (path / "python3").write_text(python)
        (path / "python3").chmod(0o755)

    result = subprocess.run(
        [str(checkout / "scripts" / "setup")],
        env={"PATH": str(path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("scripts/setup: ")
    assert says in line
    assert not (checkout / ".venv").exists()


def test_setup_has_nothing_to_do_the_second_time() -> None:
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "TMPDIR"}}

    result = subprocess.run(
        [str(ROOT / "scripts" / "setup"), "dev"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_ci_fails_without_the_guides(checkout: Path) -> None:
    shutil.copytree(ROOT / ".ci", checkout / ".ci")

    result = subprocess.run(
        ["bash", str(checkout / ".ci" / "run")], capture_output=True, text=True, timeout=60, check=False
    )

    assert result.returncode == 1
    assert "seeds" in result.stderr
