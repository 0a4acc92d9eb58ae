"""Starts that fail and replicas that die: each has its exit code and its reason (contract.Exit)."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.ports import held_port
from tests.support.runner import LONG, RUNNER, Asking, environment, head, read_answer, running, wait_until

SIMPLE = """
    import modal
    app = modal.App("app")

    @app.function()
    @modal.fastapi_endpoint()
    def f(name: str = "you"):
        return f"hello {name}"
"""


def test_a_hanging_import_times_out_and_shows_where(tmp_path: Path) -> None:
    program = "import time\n\ndef hang_here():\n    open('here', 'w').close()\n    time.sleep(600)\n\nhang_here()\n"
    for limit in ("2", "20"):  # a machine that stands still may not have come so far in the first time
        with running(tmp_path, program, extra={c.ENV_STARTUP_TIMEOUT: limit}) as runner:
            assert runner.wait() == c.Exit.STARTUP_TIMEOUT
            assert "startup_timeout" in runner.err
        if (tmp_path / "here").exists():
            break
    assert "hang_here" in runner.err


FAILURES = {
    "module raises": (
        "import modal\nraise RuntimeError('broken module')\n",
        "f",
        c.Exit.USER_CODE_FAILED,
        "broken module",
    ),
    "module exits": ("import sys\nsys.exit(3)\n", "f", c.Exit.USER_CODE_FAILED, "SystemExit"),
    "syntax error": ("def f(:\n", "f", c.Exit.USER_CODE_FAILED, "SyntaxError"),
    "no such function": (SIMPLE, "g", c.Exit.FUNCTION_NOT_FOUND, "it has: f"),
    "enter raises": (
        """
        import modal
        app = modal.App("app")

        @app.cls()
        class S:
            @modal.enter()
            def load(self):
                raise ValueError("no model here")

            @modal.fastapi_endpoint()
            def f(self):
                return 1
        """,
        "S",
        c.Exit.USER_CODE_FAILED,
        "no model here",
    ),
    "app function raises": (
        """
        import modal
        app = modal.App("app")

        @app.function()
        @modal.asgi_app()
        def f():
            raise ValueError("no app here")
        """,
        "f",
        c.Exit.USER_CODE_FAILED,
        "no app here",
    ),
    "app function returns nothing": (
        """
        import modal
        app = modal.App("app")

        @app.function()
        @modal.asgi_app()
        def f():
            pass
        """,
        "f",
        c.Exit.USER_CODE_FAILED,
        "it returned None",
    ),
    "lifespan fails": (
        """
        import contextlib
        import modal
        from fastapi import FastAPI
        app = modal.App("app")

        @contextlib.asynccontextmanager
        async def lifespan(web):
            raise OSError("no database here")
            yield

        @app.function()
        @modal.asgi_app()
        def f():
            return FastAPI(lifespan=lifespan)
        """,
        "f",
        c.Exit.USER_CODE_FAILED,
        "no database here",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_start_has_its_exit_code_and_reason(tmp_path: Path, name: str) -> None:
    program, tag, code, reason = FAILURES[name]
    with running(tmp_path, program, tag) as runner:
        assert runner.wait() == code
        assert reason in runner.err
        assert "modalnomad_sdk/runner" not in runner.err  # none of our own frames


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with running(tmp_path, SIMPLE, source="script:other.py") as runner:
        assert runner.wait() == c.Exit.FUNCTION_NOT_FOUND
        assert "other.py does not exist" in runner.err


def test_every_problem_of_the_environment_is_told_at_once(tmp_path: Path) -> None:
    variables = environment(tmp_path, "script:prog.py", "f", {c.ENV_MAX_INPUTS: "many", c.ENV_LISTEN: "fd:777"})
    del variables[c.ENV_POOL]
    done = subprocess.run(
        [sys.executable, str(RUNNER)], env=variables, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == c.Exit.BAD_CONFIGURATION
    assert c.ENV_POOL in done.stderr
    assert c.ENV_MAX_INPUTS in done.stderr


def test_a_descriptor_that_is_no_socket_is_told(tmp_path: Path) -> None:
    with running(tmp_path, SIMPLE, extra={c.ENV_LISTEN: "fd:0"}) as runner:
        assert runner.wait() == c.Exit.BAD_CONFIGURATION
        assert "not a socket" in runner.err


def test_it_binds_a_port_when_told_to(tmp_path: Path) -> None:
    with held_port() as port, running(tmp_path, SIMPLE, extra={c.ENV_LISTEN: f"port:{port}"}):

        def connect() -> socket.socket | None:
            try:
                return socket.create_connection(("127.0.0.1", port), LONG)
            except ConnectionRefusedError:
                return None

        with wait_until(connect) as sock:
            sock.sendall(head("/?name=tcp"))
            assert read_answer(sock).json() == "hello tcp"


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with running(tmp_path, SIMPLE, extra={c.ENV_LISTEN: f"port:{port}"}) as runner:
            assert runner.wait() == c.Exit.BAD_CONFIGURATION
            assert f"cannot listen on 127.0.0.1:{port}" in runner.err


@pytest.mark.parametrize(
    ("asked", "visible", "told"),
    [
        ("1", "", "1 GPU was asked for and 0 are visible here"),
        ("9", "", "9 GPUs were asked for and 0 are visible here"),
        ("2", "MIG-5f0c", "2 GPUs were asked for and 1 is visible here"),
    ],
)
def test_missing_gpus_are_told(tmp_path: Path, asked: str, visible: str, told: str) -> None:
    with running(tmp_path, SIMPLE, extra={c.ENV_GPUS: asked, "CUDA_VISIBLE_DEVICES": visible}) as runner:
        assert runner.wait() == c.Exit.GPU_MISSING
        assert told in runner.err


def test_the_starter_sees_which_signal_killed_it(tmp_path: Path) -> None:
    program = SIMPLE.replace('return f"hello {name}"', "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with running(tmp_path, program) as runner:
        runner.ready()
        with pytest.raises(ConnectionError):
            runner.ask("/")
        assert runner.wait() == 128 + signal.SIGSEGV
        assert "SIGSEGV" in runner.err


BECOMES_ANOTHER = """
    import os
    import modal
    app = modal.App("app")

    @app.function()
    @modal.asgi_app()
    def f():
        %s
        async def site(scope, receive, send):
            if scope["type"] != "lifespan":
                %s
        return site
"""


@pytest.mark.parametrize("how", ["os.execv('/bin/sleep', ['sleep', '600'])", "os.closerange(3, 256)"])
@pytest.mark.parametrize("when", ["start", "request"])
def test_a_program_that_replaces_or_cuts_off_its_process_ends_the_replica(tmp_path: Path, how: str, when: str) -> None:
    how += "; __import__('time').sleep(600)"
    program = BECOMES_ANOTHER % ((how, "pass") if when == "start" else ("pass", how))
    with running(tmp_path, program, extra={c.ENV_STARTUP_TIMEOUT: "60"}) as runner:
        if when == "request":
            runner.ready()
            Asking(runner)
        assert runner.wait() == c.Exit.USER_CODE_FAILED
        assert "exec" in runner.err


def test_a_replica_that_cut_itself_off_still_hears_sigterm(tmp_path: Path) -> None:
    cut = "os.closerange(3, 256); os.write(2, b'cut off'); __import__('time').sleep(600)"
    with running(tmp_path, BECOMES_ANOTHER % ("pass", cut), extra={c.ENV_GRACE_PERIOD: str(2 * LONG)}) as runner:
        runner.ready()
        Asking(runner)
        wait_until(lambda: "cut off" in runner.err, "it is cut off")
        runner.terminate()
        assert runner.wait() == c.Exit.USER_CODE_FAILED, "without waiting for the end of the grace period"
        assert "Traceback" not in runner.err
