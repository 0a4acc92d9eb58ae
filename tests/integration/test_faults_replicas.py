"""Replicas that are killed, run out of something, or never get ready: what callers see, and that nothing stays."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import psutil
import pytest

from modalnomad.embedded.limits import available
from tests.support.handshake import handshake
from tests.support.leaks import no_leaks
from tests.support.leftovers import family
from tests.support.runner import LONG, wait_until
from tests.support.up import Up, own_home, store, up

PROGRAM = """
import asyncio, os, resource, time
import modal

app = modal.App("faults")
HERE = {folder!r}

async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await receive()
        await send({{"type": "websocket.accept"}})
        await send({{"type": "websocket.send", "text": "open"}})
        await receive()
        return
    path = scope["path"]
    body = b"ok"
    if path == "/hang":
        print("hangs", flush=True)
        await asyncio.sleep(600)
    if path == "/memory":
        body = b"x" * (512 << 20)
    if path == "/files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            web.kept = []
            while True:
                web.kept.append(open("/dev/null"))
        except OSError as error:
            body = str(error).encode()
    if path == "/processes":
        body = multiply()
    if path == "/bomb":
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": body, "more_body": path == "/stream"}})
    if path == "/stream":
        await asyncio.sleep(600)

def multiply():
    made = 0
    try:
        while True:
            if os.fork() == 0:
                os.setsid()
                time.sleep(600)
                os._exit(0)
            made += 1
    except OSError:
        return str(made).encode()

@app.function(scaledown_window=2)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def f():
    return web

@app.function(scaledown_window=2, memory=(64, 160))
@modal.asgi_app()
def small():
    return web

@app.function(scaledown_window=2, timeout=3, startup_timeout=60)
@modal.asgi_app()
def brief():
    return web

@app.cls(scaledown_window=2)
class Slow:
    @modal.enter()
    def enter(self):
        print("enters", flush=True)
        time.sleep(600)

    @modal.asgi_app()
    def slow(self):
        return web

@app.cls(scaledown_window=2, startup_timeout=1)
class Late:
    @modal.enter()
    def enter(self):
        time.sleep(600)

    @modal.asgi_app()
    def late(self):
        return web
"""
SETTINGS = {
    "MODALNOMAD_EMBEDDED__GRACE_PERIOD": "2",
    "MODALNOMAD_EMBEDDED__MAX_PROCESSES": "60",
    "MODALNOMAD_ROUTER__DRAIN_TIMEOUT": "2",
    "MODALNOMAD_SCALING__OVERSTAY": "3",
}


PLAIN = pytest.mark.parametrize("platform", [False], ids=["plain"], indirect=True)
"""Once is enough."""
FORKED = pytest.mark.parametrize("platform", [True], ids=["forked"], indirect=True)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "forked"])
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `up` for all; with replicas as processes of their own, and forked from a template."""
    folder = tmp_path_factory.mktemp("faults")
    file = folder / "faults.py"
    file.write_text(PROGRAM.format(folder=str(folder)))
    home = own_home(folder)
    store(home, file)
    templates = {"MODALNOMAD_EMBEDDED__TEMPLATES": str(request.param).lower()}
    with up(home, env=SETTINGS | templates) as u:
        assert httpx.get(u.url("f"), timeout=30).text == "ok"
        if request.param:
            wait_until(lambda: len(of_templates(u)) > 3, "a template, and the processes of the next replica")
        yield u


@pytest.fixture
def u(platform: Up) -> Iterator[Up]:
    """It, and a look whether the test has left anything."""
    with no_leaks(platform):
        yield platform


def of_templates(u: Up) -> list[psutil.Process]:
    """Templates and what was forked from them."""
    found = []
    for process in family(u.pid):
        with contextlib.suppress(psutil.Error):
            if "template" in process.cmdline():
                found.append(process)
    return found


def replica_of(u: Up) -> list[psutil.Process]:
    """The processes of the only replica, the outermost first. A forked one does not show its environment."""
    found = []
    for process in family(u.pid)[1:]:
        with contextlib.suppress(psutil.Error):
            if f"{u.home}/run/" in process.cwd() and "/replicas/" in process.cwd():
                found.append((len(process.parents()), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def kill(u: Up, who: int = -1) -> None:
    """The innermost process of the replica (0: the outermost)."""
    processes = wait_until(lambda: replica_of(u), "a replica")
    processes[who].kill()


class Asking(threading.Thread):
    """A request under way: `status` and `code`, or `error`."""

    def __init__(self, url: str, method: str = "GET") -> None:
        super().__init__(daemon=True)
        self.url, self.method = url, method
        self.answer: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = httpx.request(self.method, self.url, timeout=30)
        except httpx.HTTPError as error:
            self.error = error

    def outcome(self) -> tuple[int, str | None]:
        self.join(30)
        assert self.answer is not None, repr(self.error)
        return self.answer.status_code, self.answer.headers.get("modalnomad-error")


def test_killed_while_idle_is_not_visible(u: Up) -> None:
    def killed() -> bool:
        assert httpx.get(u.url("f"), timeout=30).text == "ok"
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # idle for too long already
            replica_of(u)[-1].kill()
            return True
        return False

    wait_until(killed, "an idle replica")
    after = len(u.events)

    assert httpx.get(u.url("f"), timeout=30).status_code == 200
    u.wait_event("replica", after=after, state="ready", function="f")


def test_killed_while_it_starts(u: Up) -> None:
    after = len(u.events)
    asking = Asking(u.url("Slow.slow"))
    u.wait_for(lambda event: event.get("line") == "enters", 30, after=after)

    kill(u)

    assert asking.outcome() == (503, "start_failed")


@pytest.mark.parametrize(("method", "who"), [("GET", 0), ("POST", -1)], ids=["supervisor", "runner"])
def test_killed_in_the_middle_of_a_request(u: Up, method: str, who: int) -> None:
    after = len(u.events)
    asking = Asking(u.url("f") + "/hang", method)
    u.wait_for(lambda event: event.get("line") == "hangs", 30, after=after)

    kill(u, who)

    assert asking.outcome() == (502, "replica_gone")


@PLAIN
def test_killed_in_the_middle_of_an_answer_never_ends_cleanly(u: Up) -> None:
    with httpx.stream("GET", u.url("f") + "/stream", timeout=30) as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"ok"

        kill(u)

        with pytest.raises(httpx.RemoteProtocolError):
            list(parts)


@PLAIN
def test_killed_under_an_open_websocket(u: Up) -> None:
    address = u.url("f").removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as sock:
        sock.sendall(handshake())
        received = b""
        while b"open" not in received:
            received += sock.recv(1000)

        kill(u)

        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1000) == b"", "no frame, least of all one that closes cleanly"


def test_out_of_memory_is_said(u: Up) -> None:
    if (why := available().missing.get("memory")) is not None:
        pytest.skip(f"no limit of memory here: {why}")
    after = len(u.events)

    answer = httpx.get(u.url("small") + "/memory", timeout=30)

    assert (answer.status_code, answer.headers["modalnomad-error"]) == (502, "replica_gone")
    u.wait_for(lambda event: event.get("line") == "failed: out of memory (limit 160 MiB)", 30, after=after)
    assert httpx.get(u.url("small"), timeout=30).status_code == 200


def test_processes_without_end_are_held_and_end_with_the_replica(u: Up) -> None:
    if (why := available().missing.get("pids")) is not None:
        pytest.skip(f"no limit of processes here: {why}")

    made = int(httpx.get(u.url("f") + "/processes", timeout=30).text)

    assert 40 <= made < 60
    assert httpx.get(u.url("small"), timeout=30).status_code == 200


@PLAIN
def test_a_fork_bomb_ends_with_its_request(u: Up) -> None:
    if (why := available().missing.get("pids")) is not None:
        pytest.skip(f"no limit of processes here: {why}")

    answer = httpx.get(u.url("brief") + "/bomb", timeout=30)

    assert (answer.status_code, answer.headers["modalnomad-error"]) == (504, "execution_timeout")
    wait_until(lambda: httpx.get(u.url("brief"), timeout=30).status_code == 200, "it serves again")
    wait_until(lambda: len(replica_of(u)) < 10, "the bomb is gone")


@PLAIN
def test_a_replica_without_file_descriptors_is_replaced(u: Up) -> None:
    assert "Too many open files" in httpx.get(u.url("brief") + "/files", timeout=30).text

    def answered() -> bool:
        return httpx.get(u.url("brief"), timeout=30).status_code == 200

    wait_until(answered, "it serves again")


def test_one_that_is_never_ready_is_ended(u: Up) -> None:
    seen: set[psutil.Process] = set()
    while not seen:  # it may be over before anybody looks
        asking = Asking(u.url("Late.late"))
        while asking.is_alive():
            seen.update(replica_of(u))
        assert asking.outcome() == (504, "startup_timeout")

    _, left = psutil.wait_procs(seen, timeout=LONG)
    assert not left


@FORKED
def test_templates_are_killed_too_and_replicas_come_without(u: Up) -> None:
    templates = of_templates(u)
    for process in templates:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with the one before
            process.kill()

    assert httpx.get(u.url("f"), timeout=30).text == "ok"
    wait_until(lambda: len(of_templates(u)) >= len(templates), "it is back")


@PLAIN
def test_the_counter_counts(platform: Up) -> None:
    """What stays is told: an open connection, a file."""
    address = platform.url("f").removeprefix("http://").split(":")
    run = next((platform.home / "run").glob("*/scratch"))

    def leave(sock: socket.socket) -> None:
        with no_leaks(platform, limit=0.5):
            sock.connect((address[0], int(address[1])))
            (run / "left").touch()

    with socket.socket() as sock, pytest.raises(AssertionError) as told:
        leave(sock)
    (run / "left").unlink()

    for what in ("1 × connections of the router", "1 × open: TCP connection", "scratch/left"):
        assert what in str(told.value)
    with no_leaks(platform):
        pass
