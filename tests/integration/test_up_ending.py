"""The end of `up`: what it waits for, what a second signal does, and what systemd is told."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

from modalnomad.wiring.notify import SOCKET, WATCHDOG, WATCHED, Notifier
from tests.support.leftovers import family, wait_gone
from tests.support.runner import wait_until
from tests.support.up import home_with, up

PROGRAM = """
import asyncio, modal, os, pathlib

app = modal.App("shop")

@app.function()
@modal.asgi_app()
def web():
    async def answer(scope, receive, send):
        assert scope["type"] == "http"
        print("begun", scope["path"])
        while scope["path"] == "/slow" and not pathlib.Path(OVER).exists():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (os.environ.get("NOTIFY_SOCKET") or "none").encode()})
    return answer
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What it serves answers /slow once there is the file `over`."""
    return home_with(tmp_path, PROGRAM.replace("OVER", repr(str(tmp_path / "over"))))


def later(url: str) -> tuple[threading.Thread, list[str]]:
    outcome: list[str] = []

    def ask() -> None:
        try:
            outcome.append(str(httpx.get(url, timeout=60).status_code))
        except httpx.HTTPError as error:
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, outcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_requests_finish(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    u = up(home).start()
    try:
        thread, outcome = later(u.url("web") + "/slow")
        u.wait_log("begun /slow")
        processes = family(u.pid)
        os.kill(u.pid, number)
        stopping = u.wait_event("stopping")
        assert stopping["requests"] == {"shop/web": 1}
        (tmp_path / "over").touch()
        assert u.wait() == 0
        thread.join()
    finally:
        u.stop()
    assert outcome == ["200"]
    wait_gone(processes)
    assert not list((home / "run").iterdir())
    assert not list((home / "control").iterdir())


def test_the_second_signal_ends_all_at_once(home: Path) -> None:
    u = up(home).start()
    try:
        thread, outcome = later(u.url("web") + "/slow")
        u.wait_log("begun /slow")
        processes = family(u.pid)
        os.kill(u.pid, signal.SIGTERM)
        u.wait_event("stopping")
        os.kill(u.pid, signal.SIGTERM)
        assert u.wait() == 130
        thread.join()
    finally:
        u.stop()
    assert outcome != ["200"]
    wait_gone(processes)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(home: Path, tmp_path: Path, abstract: bool) -> None:
    address = f"@modalnomad-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + address[1:] if abstract else address)
        systemd.settimeout(30)
        with up(home, env={SOCKET: address}) as u:
            assert systemd.recv(1000).decode().splitlines() == ["READY=1", f"STATUS=Serving {home}"]
            answer = httpx.get(u.url("web"), timeout=30)
            assert answer.text == "none", "no replica can speak for up"
        stopping, _, longer = systemd.recv(1000).decode().splitlines()
    assert stopping == "STOPPING=1"
    assert longer == "EXTEND_TIMEOUT_USEC=45000000", "30 s to finish, by default, and some to end"


def silent(listener: socket.socket) -> bool:
    try:
        listener.recv(1000)
    except TimeoutError:
        return True
    return False


def test_systemd_gets_signs_of_life(home: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        with up(home, env={SOCKET: str(tmp_path / "notify"), WATCHDOG: "200000"}) as u:
            signs = 0
            while signs < 5:
                signs += systemd.recv(1000) == b"WATCHDOG=1"
            os.kill(u.pid, signal.SIGSTOP)
            try:
                systemd.settimeout(1)
                wait_until(lambda: silent(systemd))
            finally:
                os.kill(u.pid, signal.SIGCONT)


def test_nobody_to_tell_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / "nobody"))
    notifier = Notifier()
    assert SOCKET not in os.environ
    notifier.ready("nobody listens")
    assert not notifier.alive_every


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [({WATCHDOG: "3000000"}, 1.5), ({WATCHDOG: "3000000", WATCHED: "1"}, 0), ({WATCHDOG: "soon"}, 0), ({}, 0)],
)
def test_signs_of_life_are_wanted_by_these_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], seconds: float
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Notifier().alive_every == seconds
    assert not variables.keys() & os.environ.keys()


def test_quiet_leaves_out_what_replicas_write(home: Path) -> None:
    with up(home, "--quiet") as u:
        assert httpx.get(u.url("web"), timeout=30).status_code == 200
        u.wait_event("replica", state="ready")
    assert not u.logs()
