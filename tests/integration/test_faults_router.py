"""The platform short of something itself: open files, disk. What goes on, what is refused, and that it recovers."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.leaks import no_leaks
from tests.support.runner import wait_until
from tests.support.serve import run_command
from tests.support.up import Up, own_home, store, up

PROGRAM = """
import os, time
import modal

app = modal.App("short")

async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"ok"}})

@app.function(scaledown_window=2)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def f():
    return web

@app.function(scaledown_window=600)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def kept():
    return web

@app.function(scaledown_window=2)
@modal.asgi_app()
def loops():
    if not os.path.exists({mended!r}):
        raise RuntimeError("not mended")
    return web
"""
MANY = 10_000
PLAIN = {"MODALNOMAD_EMBEDDED__TEMPLATES": "false", "MODALNOMAD_ROUTER__HEAD_TIMEOUT": "300"}
"""Nothing that comes by itself a moment after the first start, while it is counted what is there; who connects and says
nothing may stay, however long it takes until all have come."""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "short.py"
    file.write_text(PROGRAM.format(mended=str(tmp_path / "mended")))
    return file


def connect(u: Up) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", u.port), timeout=30)
    sock.setblocking(False)
    return sock


def turned_away(sock: socket.socket) -> bool:
    """Did it get an answer, or its end, to nothing?"""
    try:
        said = sock.recv(1000)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    assert said == b"" or (said.startswith(b"HTTP/1.1 503 ") and b"too_many_connections" in said)
    return True


def test_more_clients_than_files_it_may_open(program: Path, tmp_path: Path) -> None:
    """They are turned away; the others are served, replicas started, and no core is burnt."""
    home = own_home(tmp_path)
    store(home, program)
    with up(home, env=PLAIN) as u, contextlib.ExitStack() as stack:
        assert httpx.get(u.url("f"), timeout=30).text == "ok"
        with no_leaks(u):
            before = resource.prlimit(u.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(u.pid, resource.RLIMIT_NOFILE, (256, before[1]))
            early = stack.enter_context(httpx.Client(base_url=u.url("f"), timeout=30))
            assert early.get("/").text == "ok"
            clients = [stack.enter_context(connect(u)) for _ in range(400)]
            wait_until(lambda: sum(turned_away(client) for client in clients[-100:]) == 100, "the last are turned away")
            assert not any(turned_away(client) for client in clients[:100])

            process = psutil.Process(u.pid)
            used = sum(process.cpu_times()[:2])
            time.sleep(1)  # what is measured is what it does by itself in this time
            assert sum(process.cpu_times()[:2]) - used < 0.5
            assert early.get("/").text == "ok"
            clients[0].sendall(b"GET / HTTP/1.1\r\nHost: short-kept.localhost\r\n\r\n")
            wait_until(lambda: (received := _received(clients[0])) and b"200 OK" in received, "a replica is started")
            assert sum("turned away" in line for line in u.stderr_lines) == 1

            for client in clients:
                client.close()
            wait_until(lambda: _answered(u.url("f")), "the places of those who left are free")
            resource.prlimit(u.pid, resource.RLIMIT_NOFILE, before)
            early.close()
            psutil.Process(u.pid)
            _end_kept(u)


def _answered(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):  # turned away
        return httpx.get(url, timeout=30).text == "ok"
    return False


def _received(sock: socket.socket) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return sock.recv(1000)
    return b""


def _end_kept(u: Up) -> None:
    """`kept` would stay for ten minutes."""
    for child in psutil.Process(u.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("MODALNOMAD_FUNCTION") == "kept":
                child.kill()


def test_ten_thousand_idle_connections(program: Path, tmp_path: Path) -> None:
    """Requests beside them are answered as quickly as ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(MANY, hard - 1000)
    if many < 1000:
        pytest.skip(f"this process may open {hard} files")
    home = own_home(tmp_path)
    store(home, program)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with up(home, env=PLAIN) as u, httpx.Client(base_url=u.url("f"), timeout=30) as client:
            assert client.get("/").text == "ok"
            client.close()
            with no_leaks(u), contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(u)) for _ in range(many)]
                with httpx.Client(base_url=u.url("f"), timeout=30) as other:
                    assert other.get("/").text == "ok"
                    took = []
                    for _ in range(100):
                        began = time.monotonic()
                        assert other.get("/").text == "ok"
                        took.append(time.monotonic() - began)
                    assert sorted(took)[50] < 0.05, "also on a machine that has other work"
                assert not any(turned_away(each) for each in clients[:: many // 100])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_crash_loop_is_tried_one_at_a_time_and_mended(program: Path, tmp_path: Path) -> None:
    home = own_home(tmp_path)
    store(home, program)
    with up(home, env=PLAIN | {"MODALNOMAD_SCALING__BREAKER_BACKOFF_MAX": "2"}) as u:
        url = u.url("loops")
        with no_leaks(u):
            answers = [httpx.get(url, timeout=30) for _ in range(6)]
            assert {answer.status_code for answer in answers} == {503}
            assert {answer.headers["modalnomad-error"] for answer in answers} == {"start_failed"}
            wait_until(lambda: _turned_down(u, url), "an open breaker starts nothing, but for a trial")

            (tmp_path / "mended").touch()
            wait_until(lambda: httpx.get(url, timeout=30).status_code == 200, "a trial succeeds")

        (tmp_path / "mended").unlink()
        [httpx.get(url, timeout=30) for _ in range(4)]
        program.write_text(program.read_text().replace("not os.path.exists", "os.path.exists"))
        store(home, program)
        wait_until(lambda: httpx.get(url, timeout=30).status_code == 200, "a redeploy mends at once")


def _turned_down(u: Up, url: str) -> bool:
    """Were five requests, one after the other, told to come later, and nothing was started for them?"""

    def started() -> int:
        return sum(event["event"] == "replica" and event["state"] == "starting" for event in list(u.events))

    before = started()
    answers = [httpx.get(url, timeout=30) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {503}
    return started() == before and all(int(answer.headers.get("retry-after", 0)) >= 1 for answer in answers)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root mounts a small disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk: {done.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(program: Path, tmp_path: Path, small_disk: Path) -> None:
    """Commands say so and change nothing, replicas that run go on, and when there is room again all is as before."""
    home = own_home(small_disk)
    store(home, program)
    assert run_command("secret", "create", "kept", "A=1", home=home).returncode == 0
    with up(home, env=PLAIN) as u:
        assert httpx.get(u.url("kept"), timeout=30).text == "ok"
        full = small_disk / "full"
        with contextlib.suppress(OSError), full.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                continue
        after = len(u.events)

        assert httpx.get(u.url("kept"), timeout=30).text == "ok"
        no_room = httpx.get(u.url("f"), timeout=30)
        assert (no_room.status_code, no_room.headers["modalnomad-error"]) == (503, "start_failed")
        u.wait_for(lambda event: "the disk is full" in str(event.get("failure", "")), 30, after=after)
        program.write_text(program.read_text() + "\n# another version\n")
        for command in (["secret", "create", "new", "A=1"], ["token", "create"], ["deploy", str(program)]):
            done = run_command(*command, home=home)
            assert done.returncode == 1, done
            assert "free some space" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
        assert httpx.get(u.url("kept"), timeout=30).text == "ok"

        full.unlink()
        assert "kept" in run_command("secret", "list", home=home).stdout
        assert "new" not in run_command("secret", "list", home=home).stdout
        wait_until(lambda: httpx.get(u.url("f"), timeout=30).status_code == 200, "replicas start again")
        done = run_command("deploy", str(program), home=home)
        assert done.returncode == 0, done
    left = [path for path in home.rglob(".part-*") if "images" not in path.parts]
    assert not left, "half-written files"
