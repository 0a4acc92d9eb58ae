"""Ctrl-C while requests run: what is waited for, how long, and what ends meanwhile."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.runner import LONG, wait_until
from tests.support.serve import Event, Serve, command_environment, serve, shared_home

PROGRAM = """
import modal, pathlib, time

here = pathlib.Path({folder!r})
app = modal.App("ending")

@app.cls()
class Stuck:
    @modal.fastapi_endpoint()
    def slow(self):
        print("slow has begun")
        time.sleep(600)

@app.cls()
class Quick:
    @modal.fastapi_endpoint()
    def quick(self):
        print("quick has begun")
        while not (here / "over").exists():
            time.sleep(0.01)
        return "done"

    @modal.exit()
    def end(self):
        print("quick exits", time.monotonic())

@app.cls()
class Idle:
    @modal.fastapi_endpoint()
    def idle(self):
        return "idle"

    @modal.exit()
    def end(self):
        while not (here / "over").exists() and not (here / "at once").exists():
            time.sleep(0.01)
        print("idle exits", time.monotonic())
"""
DRAIN, GRACE = 5, 60
LIMITS = {"MODALNOMAD_ROUTER__DRAIN_TIMEOUT": str(DRAIN), "MODALNOMAD_EMBEDDED__GRACE_PERIOD": str(GRACE)}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "ending.py"
    file.write_text(PROGRAM.format(folder=str(tmp_path)))
    return file


def later(url: str) -> tuple[threading.Thread, list[Any]]:
    """A request on a thread of its own; what became of it, and when."""
    outcome: list[Any] = []

    def ask() -> None:
        try:
            answer = httpx.get(url, timeout=60)
            outcome.append(f"{answer.status_code} {answer.text}")
        except httpx.HTTPError as error:
            outcome.append(type(error).__name__)
        outcome.append(time.monotonic())

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, outcome


def lines(s: Serve) -> list[str]:
    return [event["line"] for event in s.logs()]


def when(event: Event) -> float:
    return float(event["line"].split()[-1])


def test_a_stuck_request_is_waited_for_once_and_others_end_meanwhile(program: Path, tmp_path: Path) -> None:
    (tmp_path / "at once").touch()
    s = serve(program, env=LIMITS).start()
    try:
        assert httpx.get(s.url("Idle.idle"), timeout=60).status_code == 200
        stuck, lost = later(s.url("Stuck.slow"))
        quick, answered = later(s.url("Quick.quick"))
        s.wait_log("slow has begun")
        s.wait_log("quick has begun")

        began = time.monotonic()
        s.interrupt()
        stopping = s.wait_event("stopping")
        (tmp_path / "over").touch()
        exits = [s.wait_log(f"{name} exits") for name in ("idle", "quick")]
        assert s.wait(GRACE) == 0
        took = time.monotonic() - began
        quick.join(60)
        stuck.join(60)
    finally:
        s.stop()
    assert stopping["requests"] == {"ending/Stuck": 1, "ending/Quick": 1}
    assert stopping["seconds"] == GRACE
    assert answered[0] == '200 "done"'
    assert not lost[0].startswith("200")
    assert max(map(when, exits)) < lost[1], "others end before the time is over"
    assert DRAIN <= took < GRACE, "the grace period does not begin where the drain ends"
    assert f"Cut off, not done after {DRAIN} s: 1 request of ending/Stuck" in s.stderr_lines


def test_exit_methods_have_the_rest_of_the_time(program: Path, tmp_path: Path) -> None:
    s = serve(program, env=LIMITS).start()

    def told() -> re.Match[str] | None:
        found = (re.fullmatch(r"Waiting (\d+) s at most for replicas of Idle to end", line) for line in s.stderr_lines)
        return next(filter(None, found), None)

    try:
        assert httpx.get(s.url("Idle.idle"), timeout=60).status_code == 200
        s.interrupt()
        wait_until(told)
        (tmp_path / "over").touch()
        assert s.wait(GRACE) == 0
    finally:
        s.stop()
    assert [line for line in lines(s) if line.startswith("idle exits")]
    found = told()
    assert found is not None
    assert GRACE / 2 < int(found[1]) <= GRACE


def test_people_are_told_what_is_waited_for_and_the_way_round_it(program: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "serve", str(program)],
        env=command_environment(shared_home()),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        shown: list[str] = []

        def read_until(text: str) -> str:
            assert process.stdout is not None
            for line in process.stdout:
                shown.append(line.strip())
                if text in line:
                    return shown[-1]
            raise AssertionError("\n".join(shown))

        read_until("hit Ctrl-C")
        url = shown[next(i for i, line in enumerate(shown) if "ending/Stuck.slow" in line) + 1].split()[-1]
        stuck, _ = later(url)
        read_until("slow has begun")
        process.send_signal(signal.SIGINT)
        told = read_until("Stopping")
        assert told == "Stopping within 30 s: waiting for 1 request of ending/Stuck; Ctrl-C again ends all at once"
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
        stuck.join(60)
    finally:
        process.kill()
        process.communicate()
