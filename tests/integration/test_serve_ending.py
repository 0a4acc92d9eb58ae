"""Ctrl-C while requests run: what is waited for, how long, and what ends meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.serve import Serve, command_environment, serve, shared_home

PROGRAM = """
import modal, time

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
    def quick(self, seconds: float):
        print("quick has begun")
        time.sleep(seconds)
        return "done"

    @modal.exit()
    def end(self):
        print("quick exits")

@app.cls()
class Idle:
    @modal.fastapi_endpoint()
    def idle(self, seconds: float):
        self.seconds = seconds
        return "idle"

    @modal.exit()
    def end(self):
        time.sleep(self.seconds)
        print("idle exits")
"""
DRAIN, GRACE = 4, 20
LIMITS = {"MODALNOMAD_ROUTER__DRAIN_TIMEOUT": str(DRAIN), "MODALNOMAD_EMBEDDED__GRACE_PERIOD": str(GRACE)}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "ending.py"
    file.write_text(PROGRAM)
    return file


def later(url: str) -> tuple[threading.Thread, list[str]]:
    """A request on a thread of its own, and what became of it."""
    outcome: list[str] = []

    def ask() -> None:
        try:
            answer = httpx.get(url, timeout=60)
            outcome.append(f"{answer.status_code} {answer.text}")
        except httpx.HTTPError as error:
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, outcome


def lines(s: Serve) -> list[str]:
    return [event["line"] for event in s.logs()]


def test_a_stuck_request_is_waited_for_once_and_others_end_meanwhile(program: Path) -> None:
    s = serve(program, env=LIMITS).start()
    try:
        assert httpx.get(s.url("Idle.idle") + "/?seconds=0", timeout=30).status_code == 200
        stuck, lost = later(s.url("Stuck.slow"))
        quick, answered = later(s.url("Quick.quick") + "/?seconds=1")
        s.wait_log("slow has begun")
        s.wait_log("quick has begun")

        began = time.monotonic()
        s.interrupt()
        stopping = s.wait_event("stopping")
        s.wait_log("idle exits")
        s.wait_log("quick exits")
        assert not any("Cut off" in line for line in s.stderr_lines), "others end before the time is over"
        assert s.wait() == 0
        took = time.monotonic() - began
        quick.join(10)
        stuck.join(10)
    finally:
        s.stop()
    assert stopping["requests"] == {"ending/Stuck": 1, "ending/Quick": 1}
    assert stopping["seconds"] == GRACE
    assert answered == ['200 "done"']
    assert not lost[0].startswith("200")
    assert DRAIN <= took < GRACE, "the grace period does not begin where the drain ends"
    assert f"Cut off, not done after {DRAIN} s: 1 request of ending/Stuck" in s.stderr_lines


def test_exit_methods_have_the_rest_of_the_time(program: Path) -> None:
    s = serve(program, env=LIMITS).start()
    try:
        assert httpx.get(s.url("Idle.idle") + "/?seconds=2.5", timeout=30).status_code == 200
        assert s.stop() == 0
    finally:
        s.stop()
    assert "idle exits" in lines(s)
    assert [line for line in s.stderr_lines if line.startswith("Waiting 20 s at most for replicas of Idle")]


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
        assert process.wait(10) == 130
        stuck.join(10)
    finally:
        process.kill()
        process.communicate()
