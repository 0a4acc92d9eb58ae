"""Nothing of a replica outlives it, and nothing it started holds its socket (design §6)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import LONG, PYTHON, RUNNER, Asking, Runner, running, wait_until

# Without CAP_SYS_ADMIN root gets no namespaces, so the walk over descendants is what is left.
WAYS = {"namespaces": (), "walking": ("setpriv", "--bounding-set=-sys_admin")}

FAMILY = """
    import os, pathlib, subprocess, sys
    import modal
    app = modal.App("app")

    # A child, a grandchild whose parent ends, one in a session of its own, …: MARK is found from outside.
    LINE = "import time; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", LINE, "MARK", "child"])
    subprocess.run(["sh", "-c", f"'{sys.executable}' -c '{LINE}' MARK orphan & exit 0"])
    subprocess.Popen([sys.executable, "-c", LINE, "MARK", "session"], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, 1); " + LINE, "MARK", "deaf"])
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable, [sys.executable, "-c", LINE, "MARK", "forked"])

    @app.function()
    @modal.fastapi_endpoint()
    def f():
        return os.getpid()
"""


def marked(mark: str) -> list[psutil.Process]:
    """Living processes with this mark in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def family(tmp_path: Path) -> tuple[str, str]:
    """(program, mark): the mark is of this test only."""
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    return FAMILY.replace("MARK", mark), mark


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    if os.getuid() != 0 and request.param == "walking":
        pytest.skip("only root can take its own right to make namespaces away")
    return WAYS[request.param]


def end_by_lifeline(runner: Runner) -> None:
    runner.cut_lifeline()


def end_by_kill(runner: Runner) -> None:
    runner.process.kill()


def end_by_sigterm(runner: Runner) -> None:
    runner.terminate()


@pytest.mark.parametrize("end", [end_by_lifeline, end_by_kill, end_by_sigterm])
def test_everything_ends_with_the_replica(tmp_path: Path, way: tuple[str, ...], end: object) -> None:
    program, mark = family(tmp_path)
    with running(tmp_path, program, prefix=way) as runner:
        runner.ready()
        wait_until(lambda: len(marked(mark)) == 5)
        assert callable(end)
        end(runner)
        code = runner.wait()
        wait_until(lambda: not marked(mark), "a process outlived its replica")
        assert (
            code == {end_by_lifeline: c.Exit.PARENT_GONE, end_by_kill: -signal.SIGKILL, end_by_sigterm: c.Exit.OK}[end]
        )


def test_kill_of_any_process_of_the_tree_ends_it_all(tmp_path: Path, way: tuple[str, ...]) -> None:
    program, mark = family(tmp_path)
    for depth in (1, 2):  # init, runner
        with running(tmp_path, program, prefix=way) as runner:
            runner.ready()
            wait_until(lambda: len(marked(mark)) == 5)
            process = psutil.Process(runner.process.pid)
            for _ in range(depth):
                process = next(child for child in process.children() if mark not in child.cmdline())
            process.kill()
            assert runner.wait() == 128 + signal.SIGKILL
            wait_until(lambda: not marked(mark), "a process outlived its replica")


def test_a_failed_start_leaves_nothing(tmp_path: Path, way: tuple[str, ...]) -> None:
    program, mark = family(tmp_path)
    with running(tmp_path, program, tag="nothing", prefix=way) as runner:
        assert runner.wait() == c.Exit.FUNCTION_NOT_FOUND
        assert not marked(mark)


def test_leftovers_are_asked_before_they_are_killed(tmp_path: Path) -> None:
    program = """
        import pathlib, subprocess, sys
        import modal
        app = modal.App("app")
        HELPER = '''
        import pathlib, signal, sys
        def leave(*_):
            pathlib.Path("asked").touch()
            sys.exit()
        signal.signal(signal.SIGTERM, leave)
        pathlib.Path("waiting").touch()
        signal.pause()
        '''
        import textwrap
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(HELPER)])

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            return 1
    """
    patient = f"import runpy; from modalnomad_sdk.runner import processes; processes.LAST_WORDS = {LONG}; "
    patient += "runpy.run_module('modalnomad_sdk.runner', run_name='__main__')"
    extra = {"PYTHONPATH": str(RUNNER.parent.parent.parent)}
    with running(tmp_path, program, extra=extra, command=(PYTHON, "-c", patient)) as runner:
        runner.ready()
        wait_until((tmp_path / "waiting").exists)
        runner.terminate()
        assert runner.wait() == 0
        assert (tmp_path / "asked").exists()


HOLDER = """
    import multiprocessing, os, pathlib, subprocess, sys, time
    import modal
    app = modal.App("app")

    SHOW = "ls -l /proc/$$/fd"

    def inodes():
        found = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                pass
        return sorted(name for name in found if name.startswith("socket:"))

    def in_fork(queue):
        queue.put(inodes())

    @app.function()
    @modal.fastapi_endpoint()
    def f(how: str):
        if how == "exec":
            return subprocess.run(SHOW, shell=True, close_fds=False, capture_output=True, text=True).stdout
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=in_fork, args=(queue,))
        process.start()
        return str(queue.get())

    @app.function()
    @modal.fastapi_endpoint()
    def g():
        subprocess.Popen(["sleep", "600"], close_fds=False, start_new_session=True)
        return os.getpid()
"""


def listening_inode(address: str) -> str:
    """Inode of the listening socket at `address`."""

    def found() -> str | None:
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[-1] == address and columns[3] == "00010000":
                return columns[6]
        return None  # of a list that changes while it is read one may be left out

    return str(wait_until(found, f"somebody listens on {address}"))


def open_files(pid: int) -> list[str]:
    """What its descriptors are; those it closes meanwhile may be left out."""
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(file))
    return found


@pytest.mark.parametrize("how", ["exec", "fork"])
def test_a_subprocess_of_the_user_does_not_hold_the_socket(tmp_path: Path, how: str) -> None:
    with running(tmp_path, HOLDER) as runner:
        runner.ready()
        held = runner.ask(f"/?how={how}").json()
        assert f"socket:[{listening_inode(runner.address)}]" not in held


def test_only_the_runner_holds_the_socket(tmp_path: Path) -> None:
    with running(tmp_path, HOLDER, "g") as runner:
        runner.ready()
        runner.ask("/")
        inode = f"socket:[{listening_inode(runner.address)}]"
        tree = [psutil.Process(runner.process.pid), *psutil.Process(runner.process.pid).children(recursive=True)]
        holders = [process for process in tree if inode in open_files(process.pid)]
        assert len(tree) == 4
        assert holders == [tree[2]]


def test_a_process_sees_itself_in_proc(tmp_path: Path) -> None:
    program = """
        import os
        import modal
        app = modal.App("app")

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            with open(f"/proc/{os.getpid()}/status") as file:
                return [os.getpid(), next(line.split() for line in file if line.startswith("Pid:"))[1], os.getuid()]
    """
    with running(tmp_path, program) as runner:
        runner.ready()
        mine, shown, uid = runner.ask("/").json()
        assert str(mine) == shown
        assert uid == os.getuid()


def test_multiprocessing_spawn_finds_the_users_module(tmp_path: Path) -> None:
    program = """
        import multiprocessing
        import modal
        app = modal.App("app")

        def square(x):
            return modal.is_local(), x * x

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.map(square, [7])
    """
    with running(tmp_path, program) as runner:
        runner.ready()
        assert runner.ask("/").json()[0][1] == 49


def test_the_sdks_folder_does_not_leak_into_the_users_path(tmp_path: Path) -> None:
    program = """
        import sys
        import modal
        app = modal.App("app")

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            return sys.path, sys.argv, modal.__name__
    """
    with running(tmp_path, program) as runner:
        runner.ready()
        path, arguments, name = runner.ask("/").json()
        assert path[0] == str(tmp_path)
        assert not any(entry.endswith("runner") for entry in path)
        assert (arguments, name) == (["prog.py"], "modalnomad_sdk")


def test_the_old_end_of_a_connection_is_not_kept_by_the_supervisor(tmp_path: Path) -> None:
    """A connection made while the replica starts is served; one made after its end is refused, not left hanging."""
    with running(tmp_path, HOLDER, "g") as runner:
        asking = Asking(runner, path=c.READY_PATH)
        assert asking.result().status == 200
        runner.drain()
        runner.wait()
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(runner.address)
