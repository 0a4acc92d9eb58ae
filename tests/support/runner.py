"""Real replicas for tests: the runner as a child process, spoken to in raw HTTP over its Unix socket."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalnomad_sdk import contract as c

RUNNER = Path(c.__file__).parent / "runner" / "__main__.py"
PYTHON = os.environ.get("RUNNER_PYTHON") or sys.executable
"""What runs replicas; set RUNNER_PYTHON to try another version (with uvicorn, FastAPI and the others installed)."""
TICKET = "a" * 64
LONG = 30.0
"""Seconds after which a test has failed."""


@dataclass
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Runner:
    """A started runner. `lifeline` is the write end that keeps it alive."""

    process: subprocess.Popen[bytes]
    address: str
    lifeline: int
    folder: Path
    released: list[int] = field(default_factory=list)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LONG)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        return sock

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        ticket: str | None = TICKET,
    ) -> Answer:
        """One request on a connection of its own."""
        with self.connect() as sock:
            sock.sendall(head(path, method, body=body, headers=headers, ticket=ticket) + body)
            return read_answer(sock, method)

    def ready(self) -> Answer:
        """Held until the replica is ready."""
        try:
            answer = self.ask(c.READY_PATH)
        except ConnectionError as error:
            raise AssertionError(f"it ended with {self.wait()}:\n{self.err}") from error
        assert answer.status == 200, answer
        return answer

    def drain(self, idle_for: float = 0) -> Answer:
        return self.ask(f"{c.DRAIN_PATH}?idle_for={idle_for}", "POST")

    def signal(self, number: int) -> None:
        """To its outermost process."""
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def cut_lifeline(self) -> None:
        """As if the starter had been killed."""
        if self.lifeline not in self.released:
            self.released.append(self.lifeline)
            os.close(self.lifeline)

    def wait(self, timeout: float = LONG) -> int:
        return self.process.wait(timeout)

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()


def head(
    path: str = "/",
    method: str = "GET",
    *,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    ticket: str | None = TICKET,
) -> bytes:
    """A request's head as the router writes it."""
    fields = {"host": "f.localhost", "connection": "close"}
    if ticket is not None:
        fields[c.HEADER_TICKET] = ticket
    if body or method == "POST":
        fields["content-length"] = str(len(body))
    fields.update(headers or {})
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def read_answer(sock: socket.socket, method: str = "GET") -> Answer:
    """One answer, to its end. ConnectionError when it is cut off before."""
    import http.client

    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, OSError) as error:
        raise ConnectionError(repr(error)) from error
    finally:
        response.close()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body)


def environment(folder: Path, source: str, tag: str, extra: Mapping[str, str]) -> dict[str, str]:
    """What an engine sets."""
    settings = {
        c.ENV_CONTRACT: str(c.VERSION),
        c.ENV_APP: "app",
        c.ENV_FUNCTION: tag,
        c.ENV_REVISION: "rev-1",
        c.ENV_POOL: "rev-1",
        c.ENV_REPLICA: "0.1",
        c.ENV_SOURCE: source,
        c.ENV_BUNDLE: str(folder),
        c.ENV_TICKET_SHA256: hashlib.sha256(TICKET.encode()).hexdigest(),
        c.ENV_GRACE_PERIOD: "30",
        c.ENV_STARTUP_TIMEOUT: "60",
    }
    settings.update(extra)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MODALNOMAD_") and k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **settings}


def parameters(**values: Any) -> str:
    """ENV_PARAMETERS of these values."""
    raw = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def spawn(
    folder: Path,
    program: str,
    tag: str = "f",
    *,
    source: str = "script:prog.py",
    extra: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    command: tuple[str, ...] = (PYTHON, str(RUNNER)),
) -> Runner:
    """Start a runner for `program` (its text is written to prog.py). The caller ends it."""
    (folder / "prog.py").write_text(textwrap.dedent(program))
    sockets = tempfile.mkdtemp(prefix="mn-", dir="/tmp")
    address = f"{sockets}/s"
    with (
        socket.socket(socket.AF_UNIX) as listener,
        open(folder / "out", "ab") as out,
        open(folder / "err", "ab") as err,
    ):
        listener.bind(address)
        listener.listen(64)
        read_end, write_end = os.pipe()
        fds = (listener.fileno(), read_end)
        variables = {c.ENV_LISTEN: f"fd:{fds[0]}", c.ENV_LIFELINE: f"fd:{fds[1]}", **(extra or {})}
        process = subprocess.Popen(
            [*prefix, *command],
            env=environment(folder, source, tag, variables),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=fds,
            start_new_session=True,
        )
        os.close(read_end)
    return Runner(process, address, write_end, folder)


def dispose(runner: Runner) -> None:
    """End it and all that belongs to it."""
    runner.cut_lifeline()
    try:
        runner.process.wait(5)
    except subprocess.TimeoutExpired:
        runner.process.kill()
        runner.process.wait(LONG)
    remove_socket(runner)


def remove_socket(runner: Runner) -> None:
    """With the folder that was made for it."""
    path = Path(runner.address)
    path.unlink(missing_ok=True)
    path.parent.rmdir()


def wait_until_draining(runner: Runner) -> None:
    """Until it lets nobody in any more. Only while a request runs: then none but a draining replica agrees to drain.
    (A 503 does not tell: it may be full. And what is let in may hang.)"""
    wait_until(lambda: runner.drain(0).status == 202, "it drains")


def wait_until_running(runner: Runner, count: int) -> None:
    """Until so many requests hold a place. It is asked in a way that no idle replica agrees to drain for."""
    wait_until(lambda: runner.drain(3600).json()["running"] == count, f"{count} requests run")


@contextmanager
def endless_grace(runner: Runner) -> Iterator[None]:
    """Drained, with the clock of its supervisor stopped, so that the replica comes to what is last in its grace period,
    on however slow a machine. That clock runs after the block."""
    runner.signal(signal.SIGSTOP)
    try:
        assert runner.ask(f"{c.DRAIN_PATH}?force=1", "POST").status == 202
        yield
    finally:
        runner.signal(signal.SIGCONT)


def drain_when_idle(runner: Runner) -> None:
    """Let it go. The last byte of an answer is here before the replica has counted its request as over."""
    wait_until(lambda: runner.drain(0).status == 202, "it drains")


@contextmanager
def running(folder: Path, program: str, tag: str = "f", **options: Any) -> Iterator[Runner]:
    """A runner for the length of a block."""
    runner = spawn(folder, program, tag, **options)
    try:
        yield runner
    finally:
        dispose(runner)


class Asking(threading.Thread):
    """A request in the background: `answer`, or `error` when the connection was cut."""

    def __init__(self, runner: Runner, **options: Any) -> None:
        super().__init__(daemon=True)
        self.runner, self.options = runner, options
        self.answer: Answer | None = None
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.runner.ask(**self.options)
        except OSError as error:
            self.error = error

    def result(self) -> Answer:
        self.join(LONG)
        assert self.answer is not None, self.error
        return self.answer


def wait_until(condition: Any, what: str = "", within: float = LONG) -> Any:
    """The first true value of `condition()`."""
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {within} s: {what}"
        time.sleep(0.01)
