"""The end of a replica whose program does not cooperate, or still has work on threads (design §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import LONG, Asking, Runner, endless_grace, running, wait_until
from tests.support.runner_template import Template, forked, template

GRACE = 1.5

Start = Callable[..., AbstractContextManager[Runner]]


@pytest.fixture(scope="module")
def warm() -> Iterator[Template]:
    with template() as found:
        yield found


@pytest.fixture(params=["plain", "forked"])
def start(request: pytest.FixtureRequest, warm: Template) -> Start:
    """Starts a replica, one way or the other."""
    if request.param == "plain":
        return running
    return lambda *arguments, **options: forked(warm, *arguments, **options)


@pytest.mark.parametrize("how", ["time.sleep(600)", "threading.Event().wait()"])
def test_an_exit_method_that_hangs_is_cut_at_the_end_of_the_grace_period(
    tmp_path: Path, start: Start, how: str
) -> None:
    program = f"""
        import threading, time
        import modal
        app = modal.App("app")

        @app.cls()
        class S:
            @modal.fastapi_endpoint()
            def f(self):
                return 1

            @modal.exit()
            def leave(self):
                print("leaves", flush=True)
                {how}
    """
    with start(tmp_path, program, "S", extra={c.ENV_GRACE_PERIOD: str(GRACE)}) as runner:
        runner.ready()
        with endless_grace(runner):
            wait_until(lambda: "leaves" in runner.out)
        assert runner.wait() == c.Exit.GRACE_EXPIRED
        assert "in leave" in runner.err, "where it hung"


def test_a_lifespan_that_hangs_is_cut_too(tmp_path: Path, start: Start) -> None:
    program = """
        import asyncio, contextlib
        import modal
        from fastapi import FastAPI
        app = modal.App("app")

        @contextlib.asynccontextmanager
        async def lifespan(app):
            yield
            print("shuts down", flush=True)
            await asyncio.sleep(600)

        @app.function()
        @modal.asgi_app()
        def f():
            return FastAPI(lifespan=lifespan)
    """
    with start(tmp_path, program, extra={c.ENV_GRACE_PERIOD: str(GRACE)}) as runner:
        runner.ready()
        with endless_grace(runner):
            wait_until(lambda: "shuts down" in runner.out)
        assert runner.wait() == c.Exit.GRACE_EXPIRED


ON_THREADS = {
    "sync handler": """
        @app.cls()
        class S:
            @modal.fastapi_endpoint()
            def f(self):
                work()
                return "done"
""",
    "wsgi": """
        def web(environ, start_response):
            work()
            start_response("200 OK", [])
            return [b"done"]

        @app.cls()
        class S:
            @modal.wsgi_app()
            def f(self):
                return web
""",
}
TOP = """
        import pathlib, time
        import modal
        app = modal.App("app")

        def work():
            pathlib.Path("started").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
"""
LEAVE = """
            @modal.exit()
            def leave(self):
                print("left", flush=True)
"""


@pytest.mark.parametrize("kind", ON_THREADS)
def test_work_on_a_thread_is_finished_before_the_exit_methods(tmp_path: Path, start: Start, kind: str) -> None:
    with start(tmp_path, TOP + ON_THREADS[kind] + LEAVE, "S") as runner:
        runner.ready()
        asking = Asking(runner)
        wait_until((tmp_path / "started").exists)
        runner.terminate()
        wait_until(lambda: runner.drain(0).status == 202, "it drains")
        assert "left" not in runner.out
        (tmp_path / "go").touch()

        assert "done" in asking.result().text
        assert runner.wait() == c.Exit.OK
        assert "left" in runner.out


@pytest.mark.parametrize("kind", ON_THREADS)
def test_work_on_a_thread_that_does_not_end_keeps_no_replica(tmp_path: Path, start: Start, kind: str) -> None:
    """A thread cannot be ended: the request is cut, the exit methods run beside it, and the process goes."""
    with start(tmp_path, TOP + ON_THREADS[kind] + LEAVE, "S", extra={c.ENV_GRACE_PERIOD: str(GRACE)}) as runner:
        runner.ready()
        asking = Asking(runner)
        wait_until((tmp_path / "started").exists)

        with endless_grace(runner):
            wait_until(lambda: "left" in runner.out)
        assert runner.wait() == c.Exit.GRACE_EXPIRED
        asking.join(LONG)
        assert asking.answer is None


@pytest.mark.parametrize("when", ["enter", "import"])
def test_a_start_that_hangs_is_ended_with_what_it_started(tmp_path: Path, start: Start, when: str) -> None:
    hang = """
        import subprocess, time
        child = subprocess.Popen(["sleep", "600"])
        open("child", "w").write(str(child.pid))
    """
    enter = """
        import modal
        app = modal.App("app")

        @app.cls()
        class S:
            @modal.enter()
            def enter(self):
                time.sleep(600)

            @modal.fastapi_endpoint()
            def f(self):
                return 1
    """
    program = hang.rstrip() + (enter if when == "enter" else "\n        time.sleep(600)\n")
    with start(tmp_path, program, "S", extra={c.ENV_STARTUP_TIMEOUT: "1.5"}) as runner:
        assert runner.wait() == c.Exit.STARTUP_TIMEOUT
        assert "startup_timeout" in runner.err
        assert not _sleeping(tmp_path)


def _sleeping(folder: Path) -> list[Any]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "sleep" and process.cwd() == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_web_server_that_does_not_hear_is_ended(tmp_path: Path, start: Start) -> None:
    program = """
        import subprocess, sys
        import modal
        app = modal.App("app")
        CODE = '''
        import http.server, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        http.server.ThreadingHTTPServer(("127.0.0.1", 8123), http.server.SimpleHTTPRequestHandler).serve_forever()
        '''

        @app.function()
        @modal.web_server(8123)
        def f():
            import textwrap
            subprocess.Popen([sys.executable, "-c", textwrap.dedent(CODE)])
    """
    extra = {c.ENV_GRACE_PERIOD: str(2 * LONG), c.ENV_WEB_PORTS: "8123", c.ENV_NETWORK: "namespace"}
    with start(tmp_path, program, extra=extra) as runner:
        runner.ready()
        runner.terminate()
        assert runner.wait() == c.Exit.OK, "it was idle: nothing to wait for"
