"""Control groups of this machine: what a replica is in, and that none is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from modalnomad.embedded.janitor import end_group, groups_of
from modalnomad.embedded.limits import LimitFacts, available
from modalnomad.model.manifest import Resources
from tests.support.engines import embedded, program
from tests.support.leftovers import family, wait_gone
from tests.support.runner import LONG, wait_until
from tests.support.up import own_home, store, up

OWN = program("return open('/proc/self/cgroup', 'rb').read()")


@pytest.fixture(scope="module")
def facts() -> LimitFacts:
    found = available(settled=False)
    if found.missing:
        pytest.skip(f"no limits here: {found.why}")
    return found


@pytest.mark.parametrize("warm", [False, True], ids=["plain", "forked"])
async def test_all_of_a_replica_is_in_its_groups_and_they_go_with_it(
    facts: LimitFacts, tmp_path: Path, warm: bool
) -> None:
    async with embedded(tmp_path / "home", warm=warm) as h:
        limited = Resources(memory=(64, 512), cpu=(0.5, 1.5))
        revision = await h.revision(OWN, resources=limited)
        key = await h.started(revision)

        own = (await h.ask(key)).body.decode()
        groups = [group for group in _groups(h.home) if f"{Path(group).name}\n" in own]
        assert len(groups) == len(set(facts.bases.values()))
        members = {int(line) for group in groups for line in _read(group, "cgroup.procs").split()}
        assert len(members) == 3, "supervisor, init and runner"
        values = {_read(group, name) for group in groups for name in ("memory.max", "memory.limit_in_bytes")}
        assert str(512 << 20) in values
        shares = {_read(group, name) for group in groups for name in ("cpu.max", "cpu.cfs_quota_us")}
        assert shares & {"150000", "150000 100000"}

        await h.engine.kill(key)
        assert not left(groups)
    assert not left(groups)


def _groups(home: Path) -> list[str]:
    return [group for run in (home / "run").iterdir() for group in groups_of(str(run))]


def left(groups: list[str]) -> list[str]:
    return [group for group in groups if os.path.isdir(group)]


def _read(group: str, name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (Path(group) / name).read_text().strip()
    return ""


def test_kill_9_of_up_leaves_none(facts: LimitFacts, tmp_path: Path) -> None:
    file = tmp_path / "prog.py"
    file.write_text("""
import modal, time
app = modal.App("kept")

@app.cls(min_containers=1)
class S:
    @modal.enter()
    def enter(self):
        print("entered", flush=True)

    @modal.fastapi_endpoint()
    def f(self):
        return 1
""")
    home = own_home(tmp_path)
    store(home, file)
    u = up(home).start()
    try:
        u.wait_log("entered", 60)
        groups, processes = _groups(home), family(u.pid)
        assert groups
    finally:
        u.kill()
    wait_gone(processes, LONG)
    wait_until(lambda: not left(groups), "no group is left")


def test_a_group_of_the_unified_tree_ends_with_all_that_is_in_it() -> None:
    """Also where other trees have the controllers: killing and removing need none."""
    root = next(
        (
            path
            for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
            if Path(path, "cgroup.kill").exists() or Path(path, "cgroup.controllers").exists()
        ),
        None,
    )
    group = Path(f"{root}/modalnomad-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made in {root}: {error}")
    try:
        with subprocess.Popen(["sh", "-c", f"echo 0 > {group}/cgroup.procs; sleep 600 & sleep 600"]) as process:
            wait_until(lambda: len(_read(str(group), "cgroup.procs").split()) == 3)
            assert end_group(str(group))
            assert process.wait(LONG) != 0
        assert not group.exists()
    finally:
        end_group(str(group))
