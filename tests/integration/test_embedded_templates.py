"""Templates of the embedded engine: when there is one, what it is not told, and what happens when it fails.

That forked replicas behave as others do is tests/contract/test_contract_engine.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from modalnomad_sdk import contract

from modalnomad.embedded.engine import RUNNER, EmbeddedEngine
from modalnomad.embedded.template import Template
from modalnomad.model.manifest import SecretRef
from modalnomad.model.replica import PoolKey, ReplicaKey, ReplicaState
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.settings import EmbeddedSettings
from tests.support.engines import (
    HELLO,
    IMAGE,
    PATIENCE,
    Harness,
    alive,
    embedded,
    eventually,
    open_descriptors,
    opened_since,
    processes_in,
    program,
    within,
)
from tests.support.repository import ROOT

WHO = program("import json, os; return json.dumps([os.environ.get('TOKEN'), os.getpid(), os.getppid()]).encode()")

STUB = """
import os, socket, sys
if sys.argv[1:2] != ["template"]:
    open({started!r}, "a").write("started\\n")
    os.execv(sys.executable, [sys.executable, {runner!r}])
engine = socket.socket(fileno=int(sys.argv[2]))
def ready(contract={contract}):
    engine.send(b'{{"ready": true, "contract": %d}}' % contract)
def take():
    packet = b"enter"
    while b"enter" in packet:
        packet, descriptors, _, _ = socket.recv_fds(engine, 4096, 6)
    return descriptors
"""
"""A template that does what a test tells it to; other replicas are counted and start as ever."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def stub(folder: Path, behaviour: str) -> Path:
    runner = folder / "stub.py"
    top = STUB.format(started=str(folder / "started"), runner=str(RUNNER), contract=contract.VERSION)
    runner.write_text(top + behaviour)
    return runner


def plain_starts(folder: Path) -> int:
    file = folder / "started"
    return len(file.read_text().splitlines()) if file.exists() else 0


def template_now(h: Harness, revision: Revision) -> Template | None:
    assert isinstance(h.engine, EmbeddedEngine)
    tools = h.engine._tools
    assert tools is not None
    assert tools.templates is not None
    return tools.templates.ready(h.engine._prepared[revision.id].image)


def templates_in(home: Path) -> list[int]:
    found = []
    for pid in processes_in(home):
        with suppress(psutil.Error):
            if "template" in psutil.Process(pid).cmdline():
                found.append(pid)
    return found


def newest_replica(template: Template) -> psutil.Process:
    """The outermost process of the last one that was forked; after it the template forks one that waits."""
    found = []
    for child in psutil.Process(template.pid).children():
        with suppress(psutil.Error):
            _, _, below = child.cwd().partition("/replicas/")
            if below:
                found.append((int(below.partition("/")[0]), child))
    return max(found, key=lambda pair: pair[0])[1]


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()


async def serves(h: Harness, key: ReplicaKey) -> bool:
    return bool((await within(h.ask(key))).status == 200)


# --- when there is one ---------------------------------------------------------------------------------------------


async def test_without_the_setting_there_is_none(home: Path) -> None:
    async with embedded(home) as h:
        await h.started(await h.revision(HELLO))

        assert templates_in(home) == []


async def test_nothing_runs_before_the_first_start_and_later_ones_are_forked(home: Path) -> None:
    async with embedded(home, templates=True) as h:
        revision = await h.revision(HELLO)
        assert processes_in(home) == []

        assert await serves(h, await h.started(revision))
        template = await eventually(lambda: template_now(h, revision))
        assert template.handed_over == 0
        second = await h.started(revision, 1)

        assert await serves(h, second)
        assert template.handed_over == 1
        assert templates_in(home)


async def test_two_revisions_of_an_image_share_one(home: Path) -> None:
    async with embedded(home, warm=True) as h:
        one, two = await h.revision(HELLO), await h.revision(HELLO + "\n# another")
        await h.started(one)
        await h.started(two)

        template = template_now(h, one)
        assert template is template_now(h, two)
        assert template is not None
        assert template.handed_over == 2


async def test_one_that_is_not_used_ends_and_comes_back_with_the_next_start(home: Path) -> None:
    async with embedded(home, EmbeddedSettings(template_idle=0.3), warm=True) as h:
        revision = await h.revision(HELLO)
        template = await h.warm_up(revision)
        key = await h.started(revision)

        await eventually(lambda: not alive(template.pid))
        assert await serves(h, key)  # replicas live on
        await h.started(revision, 1)
        await eventually(lambda: template_now(h, revision))


# --- what it is not told -------------------------------------------------------------------------------------------


async def test_neither_secrets_nor_the_apps_names_are_in_any_process_table(home: Path) -> None:
    image = BuiltImage(digest=IMAGE, python="3.11", env=(("COLOUR", "deep-red"), ("PYTHONHASHSEED", "7")))
    async with embedded(home, warm=True) as h:
        await h.secrets.create("s", "main", {"TOKEN": "tell-nobody"})
        revision = await h.revision(WHO, secrets=(SecretRef(name="s"),), image=image)
        template = await h.warm_up(revision)
        seen = (await h.ask(await h.started(revision))).json()

        assert template.handed_over == 1, "what the image says about Python is known to the template"
        assert seen[0] == "tell-nobody"
        assert len(processes_in(home)) >= 4
        for pid in processes_in(home):
            told = environment_of(pid)
            assert b"tell-nobody" not in told
            assert b"deep-red" not in told
            assert revision.id.encode() not in told


# --- starts that need a process of their own -----------------------------------------------------------------------


async def test_an_environment_that_python_must_see_at_its_start_gets_a_process_of_its_own(home: Path) -> None:
    text = program("import sys; return str(hash('x')).encode()")
    async with embedded(home, warm=True) as h:
        await h.secrets.create("s", "main", {"PYTHONHASHSEED": "7"})
        revision = await h.revision(text, secrets=(SecretRef(name="s"),))
        answers = [(await h.ask(await h.started(revision, number))).text for number in range(2)]

        template = template_now(h, revision)
        assert template is not None
        assert template.handed_over == 0
    command = [sys.executable, "-c", "print(hash('x'))"]
    expected = await asyncio.to_thread(subprocess.check_output, command, env={"PYTHONHASHSEED": "7"}, text=True)
    assert answers == [expected.strip()] * 2


# --- failures ------------------------------------------------------------------------------------------------------


async def test_a_killed_template_leaves_replicas_alone_and_is_replaced(home: Path) -> None:
    async with embedded(home, warm=True) as h:
        revision = await h.revision(HELLO)
        key = await h.started(revision)
        template = template_now(h, revision)
        assert template is not None
        os.kill(template.pid, signal.SIGKILL)

        second = await h.started(revision, 1)  # one way or the other
        assert await serves(h, second)
        assert await serves(h, key)
        again = await eventually(lambda: template_now(h, revision))
        assert again is not template
        await h.started(revision, 2)
        assert again.handed_over >= 1

        await within(h.engine.kill(key))
        assert (await h.replica(key)).state is ReplicaState.GONE


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param("ready(); take(); os._exit(1)", id="dies with the start in its hands"),
        pytest.param('ready(); take(); engine.send(b\'{"refused": 1, "reason": "no"}\')', id="refuses"),
        pytest.param("ready(); import time; time.sleep(3600)", id="never reads"),
        pytest.param("ready(); take(); import time; time.sleep(3600)", id="never answers"),
    ],
)
async def test_a_start_that_was_not_taken_over_is_made_the_ordinary_way_once(
    home: Path, tmp_path: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalnomad.embedded.template.ANSWER_LIMIT", 0.3)
    monkeypatch.setattr("modalnomad.embedded.template.VANISH_LIMIT", PATIENCE)
    async with embedded(home, runner=stub(tmp_path, behaviour), warm=True) as h:
        key = await h.started(await h.revision(HELLO))

        assert await serves(h, key)
        assert plain_starts(tmp_path) == 1


@pytest.mark.parametrize("end", ["os._exit(1)", "import time; time.sleep(3600)"], ids=["dies", "hangs"])
async def test_a_replica_that_may_exist_is_ended_and_never_started_twice(
    home: Path, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalnomad.embedded.template.ANSWER_LIMIT", PATIENCE)
    monkeypatch.setattr("modalnomad.embedded.template.VANISH_LIMIT", 0.2)
    behaviour = f"""
ready()
fds = take()
begun, begins = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.write(fds[5], b"+")
    os.write(begins, b"+")
    os.read(fds[4], 1)  # the lifeline
    os.write(fds[5], b"{contract.Exit.PARENT_GONE:d}")
    os._exit(0)
os.read(begun, 1)
open({str(tmp_path / "begun")!r}, "w").close()
{end}
"""
    async with embedded(home, runner=stub(tmp_path, behaviour), warm=True) as h:
        revision = await h.revision(HELLO)
        template = template_now(h, revision)
        assert template is not None
        starting = asyncio.ensure_future(h.start(revision))
        await eventually((tmp_path / "begun").exists)
        for answer in template._answers.values():
            answer.set_exception(TimeoutError)  # as after its limit, but not before the replica is there
        replica = await h.until(await starting, ReplicaState.FAILED)

        assert replica.failure is not None
        assert replica.failure.exit_code == contract.Exit.PARENT_GONE
        assert plain_starts(tmp_path) == 0


@pytest.mark.parametrize("behaviour", ["sys.exit('not today')", "ready(99); engine.recv(1)", "engine.close()"])
async def test_one_that_never_gets_ready_is_in_nobodys_way(
    home: Path, tmp_path: Path, behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with embedded(home, templates=True, runner=stub(tmp_path, behaviour)) as h:
        revision = await h.revision(HELLO)
        assert await serves(h, await h.started(revision))
        await eventually(lambda: "started again in 2 s" in caplog.text)

        assert await serves(h, await h.started(revision, 1))
    assert "not today" not in behaviour or "not today" in caplog.text


async def test_killed_while_it_is_handed_over(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalnomad.embedded.template.ANSWER_LIMIT", 0.5)
    behaviour = "ready(); take(); import time; time.sleep(3600)"
    async with embedded(home, runner=stub(tmp_path, behaviour), warm=True) as h:
        revision = await h.revision(HELLO)
        template = template_now(h, revision)
        assert template is not None
        key = ReplicaKey(PoolKey(revision.id), 0, 1)
        starting = asyncio.ensure_future(h.engine.start(key, "a test"))
        await eventually(lambda: template._answers)

        await within(h.engine.kill(key))

        assert (await h.replica(key)).state is ReplicaState.GONE
        await starting


# --- the end -------------------------------------------------------------------------------------------------------

FORKS = program(
    """
import os, subprocess, sys
code = "import os; os.chdir('/'); print('up', flush=True); import time; time.sleep(3600)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
os.chdir("/")
return b"forked"
"""
)

OWNER = """
import asyncio, sys, uvloop
from pathlib import Path
from tests.support.engines import HELLO, embedded

async def main(home, text):
    async with embedded(Path(home), warm=True) as h:
        for number in range(2):
            await h.ask(await h.started(await h.revision(text), number))
        await h.start(await h.revision(HELLO + "\\nimport time; time.sleep(3600)"))
        print("running", flush=True)
        await asyncio.sleep(3600)

uvloop.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_close_leaves_nothing(home: Path) -> None:
    before = open_descriptors()
    async with embedded(home, warm=True) as h:
        assert (await h.ask(await h.started(await h.revision(FORKS)))).body == b"forked"
        assert templates_in(home)

    assert processes_in(home) == []
    assert list((home / "run").iterdir()) == []
    assert not opened_since(before)


async def test_close_while_one_warms_up(home: Path) -> None:
    before = open_descriptors()
    async with embedded(home, templates=True) as h:
        await h.start(await h.revision(HELLO))
        await eventually(lambda: templates_in(home))

    assert processes_in(home) == []
    assert not opened_since(before)


async def test_close_while_one_waits_to_be_started_again(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_descriptors()
    async with embedded(home, templates=True, runner=stub(tmp_path, "sys.exit(1)")) as h:
        await h.start(await h.revision(HELLO))
        await eventually(lambda: "started again in 1 s" in caplog.text)

    assert processes_in(home) == []
    assert not opened_since(before)


async def test_a_forked_replica_that_ended_leaves_nothing(home: Path) -> None:
    async with embedded(home, warm=True) as h:
        revision = await h.revision(FORKS)
        template = template_now(h, revision)
        assert template is not None
        await h.started(revision)
        before = open_descriptors()
        for number, way in enumerate(("drain", "kill", "supervisor"), 1):
            key = await h.started(revision, number)
            await h.ask(key)
            if way == "drain":
                await h.ask(key, f"{contract.DRAIN_PATH}?idle_for=0", "POST")
            elif way == "kill":
                await h.engine.kill(key)
            else:
                newest_replica(template).kill()
            replica = await h.until(key, ReplicaState.GONE, ReplicaState.FAILED)
            if way == "supervisor":
                assert replica.failure is not None
                assert "SIGKILL" in replica.failure.reason

            # The group of the next one is made, and entered, meanwhile.
            await eventually(lambda: not opened_since(before))
        assert template.handed_over == 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_the_death_of_the_engine_takes_template_and_replicas_along(home: Path, number: int) -> None:
    command = [sys.executable, "-c", OWNER, str(home), FORKS]
    process = subprocess.Popen(  # noqa: ASYNC220 - ended below
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert await asyncio.to_thread(process.stdout.readline) == "running\n"
        assert templates_in(home)
        mine = [psutil.Process(pid) for pid in processes_in(home)]
        mine += [child for one in mine for child in one.children(recursive=True)]
        os.killpg(process.pid, number)
        await asyncio.to_thread(process.wait)

        await eventually(lambda: not processes_in(home))
        await eventually(lambda: not any(alive(one.pid) for one in mine))
        await eventually(lambda: not list((home / "run").iterdir()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
