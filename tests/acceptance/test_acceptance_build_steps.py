"""Images whose build does something: what a replica finds of it, and how a failure is told."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import httpx

from tests.support.serve import run_command, serve

PROGRAM = """
    from pathlib import Path
    import os

    import modal

    VERSION = "1"

    def download(name):
        assert os.environ["HUB"] == "a-token"
        Path("model.txt").write_text(f"{name} {VERSION}")

    image = (
        modal.Image.debian_slim()
        .run_commands("echo of the build > data.txt")
        .run_function(download, args=["weights"], secrets=[modal.Secret.from_dict({"HUB": "a-token"})])
    )
    app = modal.App("steps", image=image)

    @app.function()
    @modal.fastapi_endpoint()
    def read():
        with open("data.txt") as file:
            return [file.read().strip(), (Path(__file__).parent / "model.txt").read_text(), "HUB" in os.environ]
"""


def test_a_replica_finds_what_build_steps_left(tmp_path: Path) -> None:
    program = tmp_path / "steps.py"
    program.write_text(dedent(PROGRAM), "utf-8")
    with serve(program) as s:
        read = s.url("read")
        assert httpx.get(read, trust_env=False, timeout=60).json() == ["of the build", "weights 1", False]
        after = len(s.events)
        program.write_text(dedent(PROGRAM).replace('VERSION = "1"', 'VERSION = "2"'), "utf-8")
        s.wait_event("reloaded", timeout=60, after=after)
        assert httpx.get(read, trust_env=False, timeout=60).json()[1] == "weights 2"


def test_a_build_step_that_fails_is_told_once(tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text(dedent(PROGRAM).replace('"a-token"\n', '"another"\n'), "utf-8")
    for arguments in ((), ("--json",)):
        ended = run_command("serve", str(program), *arguments)
        assert ended.returncode == 1
        assert ended.stderr.count("AssertionError") == 1, ended.stderr
        assert "running download() failed" in ended.stderr
        assert "a-token" not in ended.stderr + ended.stdout
    assert "AssertionError" in ended.stdout, "the last words are in the error event"
