"""Replicas forked from a warm template process behave like any other (runner/template.py)."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import drain_when_idle, remove_socket, running, wait_until
from tests.support.runner_template import Refused, Template, forked, start, template

PROGRAM = """
    import os, random, sys, threading
    import modal
    app = modal.App("app")
    print("importing in", os.getcwd())

    @app.function()
    @modal.fastapi_endpoint()
    def f():
        names = {name: os.environ.get(name) for name in ("MINE", "MODALNOMAD_REPLICA", "HOME")}
        return names, os.getpid(), os.getcwd(), sys.argv, random.random(), sorted(m for m in sys.modules if m == "prog")
"""


@pytest.fixture(scope="module")
def warm():  # type: ignore[no-untyped-def]
    with template() as one:
        yield one


def test_a_forked_replica_serves_and_drains(warm: Template, tmp_path: Path) -> None:
    with forked(warm, tmp_path, PROGRAM, extra={"MINE": "yes", "HOME": "/nowhere"}) as replica:
        replica.ready()
        names, _, folder, arguments, _, modules = replica.ask("/").json()
        assert names == {"MINE": "yes", "MODALNOMAD_REPLICA": "0.1", "HOME": "/nowhere"}
        assert (folder, arguments, modules) == (str(tmp_path), ["prog.py"], ["prog"])
        drain_when_idle(replica)
        assert replica.wait() == c.Exit.OK
        assert replica.out == f"importing in {tmp_path}\n"
        assert replica.err == ""


def test_replicas_share_nothing(warm: Template, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with forked(warm, folders[0], PROGRAM) as one, forked(warm, folders[1], PROGRAM) as two:
        one.ready(), two.ready()
        first, second = one.ask("/").json(), two.ask("/").json()
        assert first[2] != second[2]
        assert first[4] != second[4]  # not the same random numbers


def test_sigterm_lifeline_and_failures(warm: Template, tmp_path: Path) -> None:
    with forked(warm, tmp_path, PROGRAM) as replica:
        replica.ready()
        replica.terminate()
        assert replica.wait() == c.Exit.OK
    with forked(warm, tmp_path, PROGRAM) as replica:
        replica.ready()
        replica.cut_lifeline()
        assert replica.wait() == c.Exit.PARENT_GONE
    with forked(warm, tmp_path, "raise ValueError('no')\n") as replica:
        assert replica.wait() == c.Exit.USER_CODE_FAILED
        assert "ValueError: no" in replica.err
    with forked(warm, tmp_path, PROGRAM, extra={c.ENV_MAX_INPUTS: "x"}) as replica:
        assert replica.wait() == c.Exit.BAD_CONFIGURATION


def test_a_killed_replica_leaves_no_exit_code(warm: Template, tmp_path: Path) -> None:
    with forked(warm, tmp_path, PROGRAM) as replica:
        replica.ready()
        signal.pidfd_send_signal(replica.pidfd, signal.SIGKILL)
        assert replica.wait() == -1
        with pytest.raises(ConnectionRefusedError):
            wait_until(lambda: replica.connect().close())


def test_a_network_of_its_own(warm: Template, tmp_path: Path) -> None:
    program = """
        import subprocess, sys
        import modal
        app = modal.App("app")

        @app.function()
        @modal.web_server(8000)
        def f():
            subprocess.Popen([sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1"])
    """
    extra = {c.ENV_NETWORK: "namespace", c.ENV_WEB_PORTS: "8000"}
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with forked(warm, folders[0], program, extra=extra) as replica, running(folders[1], program, extra=extra) as other:
        replica.ready(), other.ready()
        assert b"prog.py" in replica.ask("/").body
        assert b"prog.py" in other.ask("/").body


@pytest.mark.parametrize("name", ["PYTHONHASHSEED", "LD_PRELOAD", "PYTHONPATH"])
def test_what_only_a_new_python_would_see_is_refused(warm: Template, tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=name):
        start(warm, tmp_path, PROGRAM, extra={name: "7"})


def test_a_module_of_the_programs_own_is_not_mistaken_for_one_that_is_loaded(warm: Template, tmp_path: Path) -> None:
    (tmp_path / "secrets.py").write_text("MINE = True\n")
    with pytest.raises(Refused, match="secrets"):
        start(warm, tmp_path, PROGRAM)


def test_code_that_asks_for_an_event_loop_at_its_import_gets_one(warm: Template, tmp_path: Path) -> None:
    program = "import asyncio, warnings\nwarnings.simplefilter('ignore')\nasyncio.get_event_loop()\n"
    program += textwrap.dedent(PROGRAM)
    with forked(warm, tmp_path, program) as replica:
        replica.ready()
        assert replica.ask("/").status == 200


def test_two_starts_at_once_hold_nothing_of_each_other(warm: Template, tmp_path: Path) -> None:
    """The second finds no process that waits: its tree is forked while its descriptors are open in the template."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    program = """
        import os
        import modal
        app = modal.App("app")

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            files = []
            for fd in os.listdir("/proc/self/fd"):
                try:
                    files.append(os.readlink(f"/proc/self/fd/{fd}"))
                except FileNotFoundError:  # the listing's own, or a connection that closed meanwhile
                    pass
            return sorted(os.path.basename(file.partition(":")[0]) for file in files)
    """
    with forked(warm, folders[0], program) as one, forked(warm, folders[1], program) as two:
        one.ready(), two.ready()
        assert "err" in one.ask("/").json()
        # Connections of earlier requests may close a little later; what were left of a start would stay.
        wait_until(lambda: one.ask("/").json() == two.ask("/").json(), "both hold the same")


def test_replicas_outlive_their_template(tmp_path: Path) -> None:
    with template() as one:
        replica = start(one, tmp_path, PROGRAM)
        replica.ready()
        one.process.kill()
        one.process.wait()
        assert replica.ask("/").status == 200
        drain_when_idle(replica)
        assert replica.wait() == c.Exit.OK
        for fd in (replica.lifeline, replica.result, replica.pidfd):
            os.close(fd)
        remove_socket(replica)
