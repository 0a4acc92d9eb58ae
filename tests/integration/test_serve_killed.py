"""`serve` is killed: whatever it was doing, no folder stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leftovers import family, wait_gone
from tests.support.runner import wait_until
from tests.support.serve import command_environment


@pytest.mark.parametrize("importing", ["time.sleep(60)", "pass"])
def test_kill_9_leaves_no_folder(tmp_path: Path, importing: str) -> None:
    """While the program is described, and while it serves."""
    home, scratch, mark = tmp_path / "home", tmp_path / "tmp", tmp_path / "mark"
    scratch.mkdir()
    file = tmp_path / "prog.py"
    file.write_text(f"""
import modal, time
open({str(mark)!r}, "w").close()
{importing}
app = modal.App()

@app.function()
@modal.fastapi_endpoint()
def hello():
    return "hi"
""")
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "serve", "--json", str(file)],
        env=command_environment(home, {"TMPDIR": str(scratch)}),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(mark.exists)
        assert list((home / "run").iterdir())
        if importing == "pass":
            assert process.stdout is not None
            assert any('"ready"' in line for line in process.stdout)
            assert list((home / "bundles").iterdir())
        processes = family(process.pid)
    finally:
        process.kill()
        process.communicate()
    wait_gone(processes)
    wait_until(lambda: not list((home / "run").iterdir()))
    wait_until(lambda: not list((home / "bundles").glob("*")))
    wait_until(lambda: not list(scratch.iterdir()))
