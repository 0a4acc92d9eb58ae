"""Where the command line prints to is not always a UTF-8 terminal, and homes are not always well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.serve import command_environment, run_command

COMMAND = f"{sys.executable} -m modalnomad"


def shell(home: Path, line: str, **extra: str) -> subprocess.CompletedProcess[bytes]:
    """`{}` in the line is the command."""
    environment = command_environment(home, {"MODALNOMAD_ROUTER__PORT": "0", **extra})
    script = line.replace("{}", COMMAND)
    return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, timeout=60, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_what_an_encoding_lacks_is_written_as_numbers(home: Path) -> None:
    done = shell(home, "{} doctor", PYTHONIOENCODING="ascii")
    assert b"Traceback" not in done.stderr
    assert rb"\u2713" in done.stdout
    done = shell(home, "{} app list --json", PYTHONIOENCODING="latin-1", MODALNOMAD_ENVIRONMENT="é")
    assert json.loads(done.stdout.decode("utf-8"))["message"].startswith("'é' is no environment name")


def test_standard_streams_may_be_closed(home: Path) -> None:
    done = shell(home, "{} app list --json 0<&- 1>&- 2>&-")
    assert done.returncode == 0
    done = shell(home, "{} token create --json 1>&-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"secret" not in b"".join(path.read_bytes() for path in home.rglob("*") if path.name.endswith("lock"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["app list", "secret list", "environment list --json"])
def test_a_full_disk_under_standard_output_is_told(home: Path, command: str) -> None:
    done = shell(home, f"{{}} {command} > /dev/full")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"No space left" in done.stderr


def test_images_that_cannot_be_looked_at_are_told(home: Path) -> None:
    run_command("secret", "list", home=home)
    (home / "images").write_text("")
    done = run_command("image", "list", home=home)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"Error: cannot look at the images in {home / 'images'}: a part of the path is a file"
    )


def test_logs_of_a_newer_home_are_refused(home: Path) -> None:
    run_command("secret", "list", home=home)
    (home / "format").write_text('{"content":{},"kind":"home","version":99}')
    done = run_command("app", "logs", "shop", home=home)
    assert done.returncode == 1
    assert "newer modalnomad" in done.stderr
