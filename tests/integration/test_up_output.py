"""What becomes of `up` when nobody can take what it tells."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from modalnomad.cli.outlet import NO_ROOM, Outlet
from modalnomad.model.errors import BackendUnreachable
from modalnomad.settings import Settings
from modalnomad.wiring.control import control_call
from tests.support.runner import wait_until
from tests.support.serve import command_environment
from tests.support.up import home_with, own_home

PROGRAM = """
import modal

app = modal.App("shop")

@app.function()
@modal.asgi_app()
def web():
    async def answer(scope, receive, send):
        assert scope["type"] == "http"
        print("said")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"up"})
    return answer
"""


@contextmanager
def started(home: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Ready, as its control socket says; killed at the end if it has not ended by itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "up", "--port", "0", "--admin-port", "0", "--json"],
        env=command_environment(home),
        stderr=subprocess.DEVNULL,
        **options,
    )
    try:
        wait_until(lambda: ready(home))
        yield process
    finally:
        process.kill()
        process.wait()


def ready(home: Path) -> bool:
    try:
        return bool(asyncio.run(control_call(Settings(home=home), "status"))["ready"])
    except BackendUnreachable:
        return False


def test_people_see_which_app_writes(tmp_path: Path) -> None:
    home = home_with(tmp_path, PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "up", "--port", "0", "--admin-port", "0"],
        env=command_environment(home),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: ready(home))
        (endpoint,) = asyncio.run(control_call(Settings(home=home), "status"))["endpoints"]
        assert httpx.get(endpoint["direct_url"], timeout=30).status_code == 200
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    lines = shown.splitlines()
    assert lines[0] == f"✓ shop/web → {endpoint['url']}"
    assert "· shop/web[0] ready" in lines
    assert [line for line in lines if line.startswith("shop/web[0] ") and line.endswith("| said")]
    assert [line for line in lines if line.startswith(f"Serving {home} on http://localhost:")]
    assert process.returncode == 0


def test_a_full_disk_under_its_output_does_not_stop_it(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    with open("/dev/full", "wb") as full, started(home, stdout=full) as process:
        assert ready(home)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_reader_that_goes_away_ends_it_in_order(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    with started(home, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGTERM)  # it has something to tell: that it stops
        assert process.wait(30) in {0, 130}


def test_under_nohup_the_end_of_the_terminal_is_nothing(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with started(home, stdout=subprocess.DEVNULL) as process:
            process.send_signal(signal.SIGHUP)
            assert ready(home)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_comes_after_a_full_disk_is_whole_lines(tmp_path: Path) -> None:
    room = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        outlet = Outlet(room, lambda: None)
        outlet._write_all(b"first\n")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, limit[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                outlet._write_all(b"second\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert caught.value.errno in NO_ROOM
        outlet._write_all(b"third\n")
        outlet._write_all(b"fourth\n")
        assert (tmp_path / "log").read_text() == "first\nsec\nthird\nfourth\n"
    finally:
        signal.signal(signal.SIGXFSZ, before)
        os.close(room)
