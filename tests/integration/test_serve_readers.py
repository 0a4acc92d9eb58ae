"""`serve` whose output nobody reads, or nobody reads any more."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.serve import command_environment, shared_home

FLOOD = """
import modal

app = modal.App("flood")

@app.function()
@modal.fastapi_endpoint()
def f(lines: int = 0):
    for number in range(lines):
        print("line", number, "x" * 200)
    return "done"
"""


@contextmanager
def flooding(folder: Path, stderr: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `serve` whose first two events were read, and the endpoint's URL."""
    file = folder / "flood.py"
    file.write_text(FLOOD)
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "serve", "--json", str(file)],
        env=command_environment(shared_home()),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["direct_url"]
        assert json.loads(process.stdout.readline())["event"] == "ready"
        yield process, url
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_stands_still_stops_neither_requests_nor_the_end(tmp_path: Path) -> None:
    with flooding(tmp_path, subprocess.DEVNULL) as (process, url):
        # Nobody reads from here on; far more than any pipe holds is written.
        for _ in range(3):
            assert httpx.get(f"{url}/?lines=5000", timeout=30).json() == "done"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_it_ends_when_nobody_reads_any_more(tmp_path: Path) -> None:
    with flooding(tmp_path, subprocess.PIPE) as (process, url):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert httpx.get(f"{url}/?lines=1", timeout=30).json() == "done"
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
