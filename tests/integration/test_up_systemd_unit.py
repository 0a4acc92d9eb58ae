"""The unit in docs/operate/systemd.md is one that systemd takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modalnomad.settings import EmbeddedSettings, RouterSettings
from modalnomad.wiring.notify import PATIENCE

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operate" / "systemd.md"


def unit() -> str:
    found = re.search(r"```ini\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    file = tmp_path / "modalnomad.service"
    file.write_text(unit().replace("/opt/modalnomad/.venv/bin/modalnomad", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_its_time_to_stop_is_that_of_the_settings() -> None:
    limit = max(RouterSettings().drain_timeout, EmbeddedSettings().grace_period)
    assert f"TimeoutStopSec={limit + PATIENCE:g}\n" in unit()
