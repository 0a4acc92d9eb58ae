"""A replica's life as its starter sees it: ready, drained, ended, failed (design §6; exit codes of the contract)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import (
    LONG,
    Asking,
    Runner,
    drain_when_idle,
    endless_grace,
    head,
    read_answer,
    running,
    wait_until,
    wait_until_draining,
    wait_until_running,
)

SIMPLE = """
    import modal
    app = modal.App("app")

    @app.function()
    @modal.fastapi_endpoint()
    def f(name: str = "you"):
        return f"hello {name}"
"""

SLOW = """
    import asyncio, pathlib
    import modal
    app = modal.App("app")

    async def asgi(scope, receive, send):
        assert scope["type"] == "http"
        pathlib.Path("started").touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    @app.function()
    @modal.asgi_app()
    def f():
        return asgi
"""


def test_ready_names_the_replica_and_answers_requests(tmp_path: Path) -> None:
    with running(tmp_path, SIMPLE) as runner:
        assert runner.ready().headers[c.HEADER_REPLICA] == "rev-1 0.1"
        answer = runner.ask("/?name=bob")
        assert (answer.status, answer.json()) == (200, "hello bob")


def test_ready_is_held_until_enter_is_done(tmp_path: Path) -> None:
    program = """
        import modal, pathlib, time
        app = modal.App("app")

        @app.cls()
        class S:
            @modal.enter()
            def wait(self):
                pathlib.Path("entering").touch()
                while not pathlib.Path("go").exists():
                    time.sleep(0.01)

            @modal.fastapi_endpoint()
            def f(self):
                return 1
    """
    with running(tmp_path, program, "S") as runner:
        asking = Asking(runner, path=c.READY_PATH)
        wait_until((tmp_path / "entering").exists)
        assert asking.answer is None
        (tmp_path / "go").touch()
        assert asking.result().status == 200


@pytest.mark.parametrize("ticket", [None, "b" * 64, "", "a" * 63])
def test_nothing_without_the_ticket(tmp_path: Path, ticket: str | None) -> None:
    with running(tmp_path, SIMPLE) as runner:
        runner.ready()
        assert runner.ask("/", ticket=ticket).status == 403
        # Health checks have no ticket. A wrong one is of a router that takes this replica for another.
        assert runner.ask(c.READY_PATH, ticket=ticket).status == (403 if ticket else 200)
        assert runner.ask(f"{c.DRAIN_PATH}?idle_for=0", "POST", ticket=ticket).status == 403
        assert runner.ask("/").status == 200


def test_drain_ends_an_idle_replica_with_zero(tmp_path: Path) -> None:
    with running(tmp_path, SIMPLE) as runner:
        runner.ready()
        assert runner.drain(0).status == 202
        assert runner.wait() == c.Exit.OK


def test_drain_is_refused_while_something_runs_or_ran_just_now(tmp_path: Path) -> None:
    with running(tmp_path, SLOW) as runner:
        runner.ready()
        asking = Asking(runner)
        wait_until((tmp_path / "started").exists)
        refused = runner.drain(0)
        assert refused.status == 409
        assert refused.json() == {"running": 1, "idle_for": 0.0}
        (tmp_path / "go").touch()
        assert asking.result().body == b"done"
        refused = wait_until(lambda: (a := runner.drain(60)).json()["running"] == 0 and a)
        assert refused.status == 409
        assert 0 <= refused.json()["idle_for"] < 60
        assert runner.drain(0).status == 202
        assert runner.wait() == 0


def test_more_than_max_inputs_are_refused_before_the_body_is_read(tmp_path: Path) -> None:
    with running(tmp_path, SLOW, extra={c.ENV_MAX_INPUTS: "2"}) as runner:
        runner.ready()
        asking = [Asking(runner), Asking(runner)]
        wait_until_running(runner, 2)
        with runner.connect() as sock:  # only the head is sent
            sock.sendall(head("/", "POST", headers={"content-length": "1000000", "expect": "100-continue"}))
            answer = read_answer(sock)
        assert (answer.status, answer.headers[c.HEADER_BUSY]) == (503, "1")
        (tmp_path / "go").touch()
        assert [one.result().status for one in asking] == [200, 200]


def test_sigterm_finishes_what_runs_and_refuses_newcomers(tmp_path: Path) -> None:
    with running(tmp_path, SLOW, extra={c.ENV_MAX_INPUTS: "5"}) as runner:
        runner.ready()
        asking = Asking(runner)
        wait_until((tmp_path / "started").exists)
        runner.terminate()
        wait_until_draining(runner)
        refused = runner.ask("/")
        assert (refused.status, refused.headers[c.HEADER_BUSY]) == (503, "1")
        assert asking.answer is None
        (tmp_path / "go").touch()
        assert asking.result().body == b"done"
        assert runner.wait() == c.Exit.OK


def test_after_the_end_nobody_can_connect(tmp_path: Path) -> None:
    with running(tmp_path, SIMPLE) as runner:
        runner.ready()
        runner.terminate()
        assert runner.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            runner.connect()


def test_end_of_the_grace_period_cuts_requests_but_runs_exit_methods(tmp_path: Path) -> None:
    program = """
        import asyncio, pathlib
        import modal
        app = modal.App("app")

        @app.cls()
        class S:
            @modal.fastapi_endpoint()
            async def f(self):
                pathlib.Path("started").touch()
                await asyncio.sleep(600)

            @modal.exit()
            def leave(self):
                print("left")
    """
    with running(tmp_path, program, "S", extra={c.ENV_GRACE_PERIOD: "1"}) as runner:
        runner.ready()
        asking = Asking(runner)
        wait_until((tmp_path / "started").exists)
        with endless_grace(runner):
            wait_until(lambda: "left" in runner.out)
        assert runner.wait() == c.Exit.GRACE_EXPIRED
        assert "1 requests were still running" in runner.err
        asking.join(LONG)
        assert asking.answer is None


def test_what_outlives_the_request_that_is_cut_does_not_change_the_exit_code(tmp_path: Path) -> None:
    """What ignores SIGTERM is waited for past the end of the grace period, when the runner has just ended in time."""
    program = """
        import asyncio, pathlib, subprocess, sys
        import modal
        app = modal.App("app")
        DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); open('deaf', 'w').close(); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", DEAF])

        @app.function()
        @modal.fastapi_endpoint()
        async def f():
            pathlib.Path("started").touch()
            await asyncio.sleep(600)
    """
    with running(tmp_path, program, extra={c.ENV_GRACE_PERIOD: "1"}) as runner:
        runner.ready()
        Asking(runner)
        wait_until((tmp_path / "started").exists)
        wait_until((tmp_path / "deaf").exists)
        runner.terminate()
        assert runner.wait() == c.Exit.GRACE_EXPIRED
        assert "replaced its process" not in runner.err


@pytest.mark.parametrize(
    "how", ["time.sleep(600)", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(600)"]
)
def test_a_blocked_loop_cannot_outlive_the_grace_period(tmp_path: Path, how: str) -> None:
    program = f"""
        import pathlib, signal, time
        import modal
        app = modal.App("app")

        @app.function()
        @modal.fastapi_endpoint()
        async def f():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pathlib.Path("started").touch()
            {how}
    """
    with running(tmp_path, program, extra={c.ENV_GRACE_PERIOD: "0.5"}) as runner:
        runner.ready()
        Asking(runner)
        wait_until((tmp_path / "started").exists)
        runner.terminate()
        assert runner.wait() == c.Exit.GRACE_EXPIRED
        assert "prog.py" in runner.err  # where it hung
        assert "not done 0.5 s after it was asked to end" in runner.err


def test_sigterm_before_ready_ends_at_once_with_zero(tmp_path: Path) -> None:
    program = "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(600)\n"
    with running(tmp_path, program) as runner:
        wait_until((tmp_path / "importing").exists)
        runner.terminate()
        assert runner.wait() == c.Exit.OK


def test_a_forgotten_replica_ends_by_itself(tmp_path: Path) -> None:
    for limit in (1.5, 10.0):  # the second one for a machine that stood still for longer than the first
        with running(tmp_path, SIMPLE, extra={c.ENV_ORPHAN_AFTER: str(limit)}) as runner:
            if greeted(runner, limit):
                break
    else:
        raise AssertionError(f"no greeting of it came within {limit} s of the one before")


def greeted(runner: Runner, limit: float) -> bool:
    """Greetings keep it, and it ends without them. False: one did not come in time."""
    runner.ready()
    began = last = time.monotonic()
    while time.monotonic() - began < 1.3 * limit:
        threading.Event().wait(0.1)
        now = time.monotonic()
        try:
            status = runner.ask(c.READY_PATH).status
        except ConnectionError:
            status = 503  # as it answers who comes just before
        if status != 200:
            assert time.monotonic() - last >= limit, status
            return False
        last = now
    assert runner.wait() == c.Exit.OK
    assert "no router asked for anything" in runner.err
    return True


def test_order_of_enter_build_lifespan_and_exit(tmp_path: Path) -> None:
    program = """
        import contextlib
        import modal
        from fastapi import FastAPI
        app = modal.App("app")

        def web(name):
            @contextlib.asynccontextmanager
            async def lifespan(app):
                print("start", name)
                yield
                print("stop", name)
            return FastAPI(lifespan=lifespan)

        @app.cls(enable_memory_snapshot=True)
        class S:
            @modal.enter()
            async def second(self):
                print("enter async")

            @modal.enter(snap=True)
            def first(self):
                print("enter snap")

            @modal.asgi_app()
            def a(self):
                print("build a")
                return web("a")

            @modal.asgi_app()
            def b(self):
                print("build b")
                return web("b")

            @modal.exit()
            def leave(self):
                print("exit sync")

            @modal.exit()
            async def leave_too(self):
                print("exit async")
    """
    with running(tmp_path, program, "S") as runner:
        runner.ready()
        runner.terminate()
        assert runner.wait() == 0
        assert runner.out.split("\n") == [
            "enter snap",
            "enter async",
            "build a",
            "build b",
            "start a",
            "start b",
            "stop a",
            "stop b",
            "exit sync",
            "exit async",
            "",
        ]


def test_exit_methods_all_run_though_one_raises(tmp_path: Path) -> None:
    program = """
        import modal
        app = modal.App("app")

        @app.cls()
        class S:
            @modal.fastapi_endpoint()
            def f(self):
                return 1

            @modal.exit()
            def one(self):
                raise RuntimeError("cannot say goodbye")

            @modal.exit()
            def two(self):
                print("two left")
    """
    with running(tmp_path, program, "S") as runner:
        runner.ready()
        assert runner.drain().status == 202
        assert runner.wait() == c.Exit.EXIT_FAILED
        assert "two left" in runner.out
        assert "cannot say goodbye" in runner.err


def test_a_request_over_its_timeout_is_ended(tmp_path: Path) -> None:
    program = """
        import asyncio
        import modal
        app = modal.App("app")

        @app.function()
        @modal.fastapi_endpoint()
        async def f():
            try:
                await asyncio.sleep(600)
            finally:
                print("cancelled")
    """
    with running(tmp_path, program, extra={c.ENV_TIMEOUT: "0.1", c.ENV_STARTUP_TIMEOUT: "20"}) as runner:
        runner.ready()
        assert runner.ask("/").status == 504
        assert "cancelled" in runner.out
        drain_when_idle(runner)  # its place is free again
