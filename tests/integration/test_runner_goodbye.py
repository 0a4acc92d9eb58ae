"""Requests that cross with the end of their replica: each gets an answer with which routers pass it on (design §6)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import LONG, Answer, Runner, drain_when_idle, head, read_answer, running, wait_until

MANAGED = """
    import asyncio, pathlib, time
    import modal
    app = modal.App("app")

    async def asgi(scope, receive, send):
        if scope["path"] == "/block":
            pathlib.Path("started").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    @app.function()
    @modal.concurrent(max_inputs=50)
    @modal.asgi_app()
    def f():
        return asgi
"""

RELAYED = """
    import pathlib, subprocess, sys
    import modal
    app = modal.App("app")

    @app.function()
    @modal.web_server(8000)
    def f():
        subprocess.Popen([sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1"])
"""


def opened(folder: Path, program: str = MANAGED) -> AbstractContextManager[Runner]:
    extra = {c.ENV_MAX_INPUTS: "50", c.ENV_GRACE_PERIOD: str(2 * LONG)}
    if program == RELAYED:  # in a network of its own: other tests see who listens on the machine's port 8000
        extra |= {c.ENV_NETWORK: "namespace", c.ENV_WEB_PORTS: "8000"}
    return running(folder, program, extra=extra)


@contextlib.contextmanager
def connections(runner: Runner, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(runner.connect()) for _ in range(count)]


def is_refusal(answer: Answer) -> bool:
    return answer.status == 503 and answer.headers.get(c.HEADER_BUSY) == "1"


@pytest.mark.parametrize("program", [MANAGED, RELAYED], ids=["managed", "relayed"])
def test_who_has_connected_and_not_been_heard_yet_is_refused_not_cut_off(tmp_path: Path, program: str) -> None:
    with opened(tmp_path, program) as runner:
        runner.ready()
        with connections(runner, 3) as late:
            drain_when_idle(runner)
            wait_until(lambda: not connects(runner), "nobody can connect any more")
            for sock in late:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # so slow that the replica has gone
                    sock.sendall(head("/", "POST", body=b"x") + b"x")
            assert all(is_refusal(read_answer(sock)) for sock in late)
        assert runner.wait() == c.Exit.OK


@pytest.mark.parametrize("program", [MANAGED, RELAYED], ids=["managed", "relayed"])
def test_who_says_nothing_holds_no_replica_up_and_is_refused(tmp_path: Path, program: str) -> None:
    with opened(tmp_path, program) as runner:
        runner.ready()
        with connections(runner, 1) as silent:
            drain_when_idle(runner)
            assert runner.wait() == c.Exit.OK, "long before the end of the grace period"
            assert all(is_refusal(read_answer(sock)) for sock in silent)


def test_a_request_on_a_kept_connection_that_crosses_with_the_end_reads_a_refusal(tmp_path: Path) -> None:
    with opened(tmp_path) as runner:
        runner.ready()
        with runner.connect() as sock:
            sock.sendall(head("/", headers={"connection": "keep-alive"}))
            assert read_answer(sock).status == 200
            drain_when_idle(runner)
            assert runner.wait() == c.Exit.OK
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(head("/", "POST", body=b"x") + b"x")
            answer = read_answer(sock)
            assert is_refusal(answer)
            assert answer.headers["connection"] == "close"


def test_who_waits_to_be_accepted_when_the_last_request_ends_is_refused_not_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as runner:
        runner.ready()
        with connections(runner, 2) as (running_, drains):
            running_.sendall(head("/block"))
            wait_until((tmp_path / "started").exists)
            drains.sendall(head(f"{c.DRAIN_PATH}?force=1", "POST"))
            with connections(runner, 40) as late:
                for sock in late:
                    sock.sendall(head("/"))
                (tmp_path / "go").touch()
                assert read_answer(drains).status == 202
                assert {read_answer(sock).status for sock in late} <= {200, 503}
                assert read_answer(running_).status == 200
        assert runner.wait() == c.Exit.OK


def connects(runner: Runner) -> bool:
    with contextlib.suppress(ConnectionRefusedError), runner.connect():
        return True
    return False
