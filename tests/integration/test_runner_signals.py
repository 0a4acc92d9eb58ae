"""SIGTERM, and what passes between supervisor and runner, at awkward moments (design §6)."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
from modalnomad_sdk import contract as c
from modalnomad_sdk.runner import processes
from modalnomad_sdk.runner.config import read_config

from tests.support.runner import LONG, Asking, Runner, environment, running, wait_until, wait_until_draining

WAITING = """
    import asyncio, pathlib
    import modal
    app = modal.App("app")

    @app.function()
    @modal.fastapi_endpoint()
    async def f():
        pathlib.Path("started").touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
        return "done"
"""


def ends_at_once(runner: Runner) -> None:
    """A SIGTERM now cuts what runs, long before the end of the grace period."""
    runner.terminate()
    assert runner.wait() == c.Exit.GRACE_EXPIRED
    assert "asked a second time" in runner.err


def test_a_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path, WAITING, extra={c.ENV_GRACE_PERIOD: str(2 * LONG)}) as runner:
        runner.ready()
        asking = Asking(runner)
        wait_until((tmp_path / "started").exists)
        runner.terminate()
        wait_until_draining(runner)
        ends_at_once(runner)
        asking.join(LONG)
        assert isinstance(asking.error, ConnectionError)


def test_sigterms_that_arrive_as_one_start_the_grace_period_once(tmp_path: Path) -> None:
    """The kernel keeps one SIGTERM for a process that is not running; one sent later is the second all the same."""
    with running(tmp_path, WAITING, extra={c.ENV_GRACE_PERIOD: str(2 * LONG)}) as runner:
        runner.ready()
        asking = Asking(runner)
        wait_until((tmp_path / "started").exists)
        runner.process.send_signal(signal.SIGSTOP)
        runner.terminate()
        runner.terminate()
        runner.process.send_signal(signal.SIGCONT)
        wait_until_draining(runner)
        assert asking.answer is None
        ends_at_once(runner)


# Without CAP_SYS_ADMIN root gets no namespaces.
@pytest.mark.parametrize("way", [(), ("setpriv", "--bounding-set=-sys_admin")], ids=["namespaces", "walking"])
def test_a_runner_that_ends_before_it_read_its_orders_keeps_its_exit_code(tmp_path: Path, way: tuple[str, ...]) -> None:
    if way and os.getuid() != 0:
        pytest.skip("only root can take its own right to make namespaces away")
    program = """
        import os, pathlib, time
        import modal
        app = modal.App("app")

        @app.function()
        @modal.fastapi_endpoint()
        async def f():
            pathlib.Path("started").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)  # the loop is blocked: nobody reads the order to end
            os._exit(7)
    """
    with running(tmp_path, program, prefix=way, extra={c.ENV_GRACE_PERIOD: str(2 * LONG)}) as runner:
        runner.ready()
        Asking(runner)
        wait_until((tmp_path / "started").exists)
        supervisor = psutil.Process(runner.process.pid)
        slept = supervisor.num_ctx_switches().voluntary
        runner.terminate()
        wait_until(
            lambda: supervisor.num_ctx_switches().voluntary > slept, "it has passed the order on and sleeps again"
        )
        (tmp_path / "go").touch()
        assert runner.wait() == 7
        assert "Traceback" not in runner.err


class LateSignals(processes.Signals):
    """The runner says that it is ready, and SIGTERM comes, right after the supervisor looked for the one."""

    def __init__(self, runner: socket.socket) -> None:
        self.runner = runner
        self.taken = 0
        self.read_end, self.write_end = os.pipe()
        os.write(self.write_end, b"x")  # something else woke it

    def take(self) -> bytes:
        self.taken += 1
        if self.taken == 1:
            self.runner.send(processes.READY)
        return bytes([signal.SIGTERM])


def test_a_signal_to_a_replica_that_has_just_become_ready_does_not_cut_what_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "reap", list)
    monkeypatch.setattr(processes, "kill_below", lambda: None)
    config = read_config(environment(tmp_path, "script:prog.py", "f", {c.ENV_LISTEN: "fd:3"}))
    link, runner = socket.socketpair()
    with link, runner:
        signals = LateSignals(runner)
        try:
            code = processes.Supervisor(config, 0, -1, link, signals).watch()
        finally:
            os.close(signals.read_end)
            os.close(signals.write_end)
        assert (code, signals.taken) == (c.Exit.GRACE_EXPIRED, 2)  # the second signal ends it, not the first
        assert runner.recv(10) == processes.TERMINATE
