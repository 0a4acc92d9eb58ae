"""The embedded engine leaves nothing behind: processes, sockets, folders, descriptors, locks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from modalnomad_sdk import contract

from modalnomad.embedded import janitor
from modalnomad.embedded.runs import SOCKET_PATH_LIMIT, Run
from modalnomad.embedded.store import FileLock
from modalnomad.model.manifest import Scaling
from modalnomad.model.replica import ReplicaState, UnixAddress
from tests.support.engines import (
    HELLO,
    ThisEnvironment,
    embedded,
    eventually,
    open_descriptors,
    opened_since,
    processes_in,
    program,
    within,
)
from tests.support.repository import ROOT, persona

FORKS = program(
    """
import subprocess, sys
code = "import time; print('up', flush=True); time.sleep(3600)"
for _ in range(2):
    options = {"start_new_session": True, "close_fds": False}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **options)
    child.stdout.readline()
return b"forked"
"""
)

OWNER = """
import asyncio, sys, uvloop
from pathlib import Path
from tests.support.engines import HELLO, embedded, program

async def main(home, text):
    async with embedded(Path(home)) as h:
        revision = await h.revision(text)
        keys = [await h.started(revision, n) for n in range(2)]
        for key in keys:
            await h.ask(key)
        await h.start(await h.revision(HELLO + "\\nimport time; time.sleep(3600)"))
        print("running", flush=True)
        await asyncio.sleep(3600)

uvloop.run(main(sys.argv[1], sys.argv[2]))  # as the command line does
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def owner(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with an engine on this home: two ready replicas with children, one that hangs in its import."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home), FORKS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "running\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def sockets(home: Path) -> list[str]:
    return [str(path) for path in home.rglob("*") if path.is_socket()]


def mode(path: str | Path) -> int:
    return Path(path).stat().st_mode & 0o777


def runs(home: Path) -> list[Path]:
    return list((home / "run").iterdir())


async def test_close_leaves_no_process_socket_folder_or_descriptor(home: Path) -> None:
    before = open_descriptors()
    async with embedded(home) as h:
        revision = await h.revision(FORKS, scaling=Scaling(max_inputs=4))
        keys = [await h.started(revision, number) for number in range(2)]
        for key in keys:
            assert (await h.ask(key)).body == b"forked"
        await h.start(await h.revision(HELLO + "\nimport time; time.sleep(3600)"))
        assert processes_in(home)
        assert len(runs(home)) == 1

    assert processes_in(home) == []
    assert runs(home) == []
    assert sockets(home) == []
    assert list((home / "bundles").iterdir()) == []
    assert not opened_since(before)


async def test_a_replica_that_ended_leaves_nothing_either(home: Path) -> None:
    async with embedded(home) as h:
        revision = await h.revision(FORKS)
        key = await h.started(revision)
        address = (await h.replica(key)).address
        assert isinstance(address, UnixAddress)
        before = open_descriptors()
        for epoch in (2, 3):
            again = await h.start(revision, epoch=epoch)
            await h.ask(again, contract.READY_PATH)
            await h.ask(again)
            await h.ask(again, f"{contract.DRAIN_PATH}?idle_for=0", "POST")
            await h.until(again, ReplicaState.GONE)

        await eventually(lambda: not opened_since(before))
        assert len(list((runs(home)[0] / "replicas").iterdir())) == 1
        assert sockets(home) == [address.path]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_death_of_the_engine_takes_everything_along(
    home: Path, owner: subprocess.Popen[str], number: int
) -> None:
    assert len(processes_in(home)) >= 3
    assert len(runs(home)) == 1

    owner.send_signal(number)
    await asyncio.to_thread(owner.wait)

    await eventually(lambda: not processes_in(home))
    await eventually(lambda: not runs(home))


async def test_the_next_engine_clears_up_where_the_janitor_was_killed_too(
    home: Path, owner: subprocess.Popen[str]
) -> None:
    for process in janitors(home):
        os.kill(process, signal.SIGKILL)
    owner.kill()
    await asyncio.to_thread(owner.wait)
    (left,) = runs(home)

    async with embedded(home) as h:
        await h.revision(HELLO)

        assert left not in runs(home)
        assert len(runs(home)) == 1


def janitors(home: Path) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            line = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if janitor.__file__.encode() in line and any(part.startswith(str(home).encode()) for part in line):
            found.append(int(name))
    return found


async def test_two_engines_of_one_home_do_not_disturb_each_other(home: Path) -> None:
    async with embedded(home) as one:
        revision = await one.revision(HELLO)
        key = await one.started(revision)
        async with embedded(home) as two:
            await two.engine.prepare(revision)
            assert len(runs(home)) == 2
            other = await two.started(revision)
            assert (await two.ask(other)).status == 200
        assert len(runs(home)) == 1
        assert (await one.ask(key)).status == 200
        assert (await one.ask(await one.started(revision, 1))).status == 200


async def test_a_prepared_bundle_goes_with_its_last_revision(home: Path) -> None:
    async with embedded(home) as h:
        first = await h.revision(HELLO)
        second = await h.revision(HELLO, timeout=5.0)
        assert first.bundle == second.bundle

        await h.engine.retire(first.id)
        assert len(list((home / "bundles").iterdir())) == 1
        await h.engine.retire(second.id)
        assert list((home / "bundles").iterdir()) == []


async def test_sockets_find_a_short_place_under_a_long_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    async with embedded(tmp_path / ("long-" * 30) / "home") as h:
        key = await h.started(await h.revision(HELLO))
        address = (await h.replica(key)).address
        assert isinstance(address, UnixAddress)
        assert len(address.path) <= SOCKET_PATH_LIMIT
        folder = Path(address.path).parent
        assert mode(folder) == 0o700

    assert not folder.exists()


async def test_folders_and_sockets_are_only_for_their_owner(home: Path) -> None:
    async with embedded(home) as h:
        key = await h.started(await h.revision(HELLO))
        address = (await h.replica(key)).address
        assert isinstance(address, UnixAddress)

        assert mode(address.path) == 0o600
        assert {mode(p) for p in (home, home / "run", *Path(address.path).parents[:2])} == {0o700}


async def test_replicas_inherit_no_descriptor_but_their_own(home: Path) -> None:
    text = program(
        """
import os
found = []
for name in os.listdir("/proc/self/fd"):
    try:
        found.append(os.readlink(f"/proc/self/fd/{name}"))
    except OSError:
        pass
return "\\n".join(found).encode()
"""
    )
    async with embedded(home) as h:
        secret = os.open(ROOT / "pyproject.toml", os.O_RDONLY)
        os.set_inheritable(secret, True)
        try:
            key = await h.started(await h.revision(text))
        finally:
            os.close(secret)
        seen = (await h.ask(key)).text

    assert "pyproject.toml" not in seen
    assert ".lock" not in seen


async def test_user_code_that_takes_its_own_rights_away_is_removed(home: Path) -> None:
    text = program(
        """
import os
os.makedirs("deep/er")
open("deep/er/file", "w").close()
os.chmod("deep/er", 0o000)
os.chmod("deep", 0o500)
return b"locked"
"""
    )
    async with embedded(home) as h:
        key = await h.started(await h.revision(text))
        assert (await h.ask(key)).body == b"locked"

    assert runs(home) == []


async def test_kill_ends_what_left_its_session_and_holds_the_output(home: Path) -> None:
    async with embedded(home) as h:
        text = persona("forks_grandchildren").read_text("utf-8")
        key = await h.started(await h.revision(text, "f"))
        assert (await h.ask(key)).status == 200
        assert len(processes_in(home)) >= 3

        await within(h.engine.kill(key))

        assert processes_in(home) == []


async def test_a_supervisor_killed_from_outside_takes_its_tree_along(home: Path) -> None:
    async with embedded(home) as h:
        key = await h.started(await h.revision(FORKS))
        assert (await h.ask(key)).body == b"forked"

        (supervisor,) = [pid for pid in processes_in(home) if psutil.Process(pid).ppid() == os.getpid()]
        os.kill(supervisor, signal.SIGKILL)
        failure = (await h.until(key, ReplicaState.FAILED)).failure

        assert failure is not None
        assert "SIGKILL" in failure.reason
        assert processes_in(home) == []


async def test_closing_while_starts_are_under_way(home: Path) -> None:
    async with embedded(home) as h:
        revision = await h.revision(HELLO)
        starts = [asyncio.ensure_future(h.start(revision, number)) for number in range(8)]
        await asyncio.sleep(0.005)

    await asyncio.gather(*starts)
    assert processes_in(home) == []
    assert runs(home) == []


async def test_closing_while_something_is_prepared(home: Path) -> None:
    before = open_descriptors()
    async with embedded(home) as h:
        revision = await h.revision(HELLO, prepare=False)
        preparing = asyncio.ensure_future(h.engine.prepare(revision))
        await asyncio.sleep(0)
        preparing.cancel()
        await asyncio.wait([preparing])

    assert runs(home) == []
    assert list((home / "bundles").iterdir()) == []
    assert not opened_since(before)


async def test_a_failed_start_of_the_process_leaves_nothing(home: Path, tmp_path: Path) -> None:
    async with embedded(home, images=ThisEnvironment(tmp_path / "no-image")) as h:
        revision = await h.revision(HELLO)
        before = open_descriptors()

        replica = await h.until(await h.start(revision), ReplicaState.FAILED)

        assert replica.failure is not None
        assert "no-image" in replica.failure.reason
        assert not opened_since(before)
        assert list((runs(home)[0] / "replicas").iterdir()) == []


def test_a_run_of_a_living_engine_is_never_cleared(home: Path) -> None:
    first = Run.open(home)
    second = Run.open(home)
    try:
        assert len(runs(home)) == 2
    finally:
        first.close()
        second.close()
    assert runs(home) == []


def test_whoever_tidies_folders_of_temporary_files_sees_that_sockets_are_in_use(home: Path) -> None:
    run = Run.open(home)
    tidying = FileLock(run.sockets)
    with pytest.raises(BlockingIOError):
        tidying.acquire(wait=False)
    run.close()
    assert not run.sockets.exists()


def test_a_run_whose_lock_is_free_is_cleared(home: Path) -> None:
    dead = home / "run" / "dead"
    (dead / "replicas").mkdir(parents=True)
    with FileLock(dead / "lock"):
        Run.open(home).close()
        assert dead.exists()

    Run.open(home).close()

    assert not dead.exists()


def test_the_janitor_knows_the_contract() -> None:
    assert f"{contract.ENV_BUNDLE}=" == janitor.MARK
