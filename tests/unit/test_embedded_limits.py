"""Control groups on made-up machines: where they may be made, what is written, what their counters say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modalnomad.embedded import limits
from modalnomad.embedded.cgroups import MIB, bases_of, out_of_memory, refusals, texts_of
from modalnomad.embedded.janitor import GROUPS, end_group, groups_of
from modalnomad.embedded.limits import Bounds, Group, LimitFacts, Limits
from modalnomad.embedded.template import Template
from modalnomad.model.manifest import Resources
from modalnomad.render.outcome import outcome

SEPARATE = """\
23 1 254:0 / / rw,relatime - ext4 /dev/vda rw
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
IN_A_CONTAINER = "31 23 0:27 /docker/abc /sys/fs/cgroup ro - cgroup cgroup rw,memory\n"


def test_separate_trees_have_a_folder_each() -> None:
    kind, found = bases_of(SEPARATE, "8:pids:/\n4:memory:/ours/here\n1:cpu,cpuacct:/x\n0::/\n")

    assert kind == "separate"
    assert found == {
        "memory": ["/sys/fs/cgroup/memory/ours/here", "/sys/fs/cgroup/memory"],
        "pids": ["/sys/fs/cgroup/pids"],
        "cpu": ["/sys/fs/cgroup/cpu,cpuacct/x", "/sys/fs/cgroup/cpu,cpuacct"],
    }


def test_in_the_one_tree_the_nearest_comes_first() -> None:
    kind, found = bases_of(UNIFIED, "0::/user.slice/user@1000.service/app.slice/run.scope\n")

    assert kind == "unified"
    assert found["memory"] == found["pids"] == found["cpu"]
    assert found["memory"][0] == "/sys/fs/cgroup/user.slice/user@1000.service/app.slice/run.scope"
    assert found["memory"][1:] == [
        "/sys/fs/cgroup/user.slice/user@1000.service/app.slice",
        "/sys/fs/cgroup/user.slice/user@1000.service",
        "/sys/fs/cgroup/user.slice",
        "/sys/fs/cgroup",
    ]


def test_a_group_that_was_made_our_own_before_is_used_again() -> None:
    _, found = bases_of(UNIFIED, "0::/system.slice/modalnomad.service/modalnomad-engine\n")

    assert found["pids"][0] == "/sys/fs/cgroup/system.slice/modalnomad.service"


def test_a_mount_that_shows_a_part_of_the_tree() -> None:
    assert bases_of(IN_A_CONTAINER, "4:memory:/docker/abc/inner\n") == (
        "separate",
        {"memory": ["/sys/fs/cgroup/inner", "/sys/fs/cgroup"]},
    )
    assert bases_of("23 1 254:0 / / rw - ext4 /dev/vda rw\n", "0::/\n") == ("none", {})


def test_what_a_program_asks_for_bounds_only_with_a_limit() -> None:
    assert Bounds.of(Resources(memory=(128, None), cpu=(1.0, None)), 0) == Bounds()
    assert Bounds.of(Resources(memory=(128, 256), cpu=(0.5, 1.5)), 100) == Bounds(256 * MIB, 100, 1.5)
    assert Bounds(1, None, 2.0).controllers == {"memory", "cpu"}


def test_what_is_written() -> None:
    assert texts_of("unified", "cpu", 1.5) == [("cpu.max", "150000 100000", True)]
    assert texts_of("separate", "cpu", None) == [("cpu.cfs_quota_us", "-1", True)]
    assert texts_of("separate", "pids", 100) == [("pids.max", "100", True)]
    assert texts_of("unified", "memory", None)[0] == ("memory.max", "max", True)
    assert [text for _, text, _ in texts_of("separate", "memory", 5)] == ["-1", "5", "5"], "never below memory"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree that behaves as the unified one does, as far as files go."""
    base = tmp_path / "tree"
    base.mkdir()

    def make(folder: str) -> None:
        os.mkdir(folder)
        for name in ("memory.max", "memory.events", "pids.max", "pids.events", "cpu.max", "cgroup.procs"):
            (Path(folder) / name).write_text("")

    monkeypatch.setattr(limits, "make_group", make)
    return base


def opened(machine: Path, run: Path, *controllers: str, max_processes: int = 10) -> Limits:
    made = Limits("auto", max_processes)
    made.facts = LimitFacts({name: str(machine) for name in controllers}, "unified", "half of it")  # type: ignore[misc]
    made._looked = True
    run.mkdir()
    made.open(run)
    return made


def test_a_group_is_named_after_its_run_and_found_again(machine: Path, tmp_path: Path) -> None:
    run = tmp_path / "4711"
    made = opened(machine, run, "memory", "pids", "cpu")

    group = made.make("3", Bounds(256 * MIB, 10))

    assert group is not None
    (folder,) = group.folders
    assert Path(folder) == machine / "modalnomad-4711-3"
    assert (Path(folder) / "memory.max").read_text() == str(256 * MIB)
    assert (Path(folder) / "pids.max").read_text() == "10"
    assert (run / GROUPS).read_text() == f"{machine}\n"
    (machine / "modalnomad-4712-1").mkdir()
    assert groups_of(str(run)) == [folder], "and nobody else's"


def test_only_what_is_possible_is_limited_and_nothing_where_nothing_is_wanted(machine: Path, tmp_path: Path) -> None:
    made = opened(machine, tmp_path / "r", "pids")

    assert made.facts.missing == {"memory": "half of it", "cpu": "half of it"}
    assert made.make("1", Bounds(memory=5)) is None
    group = made.make("2", Bounds(memory=5, processes=7))
    assert group is not None
    assert set(group.paths) == {"pids"}


def test_a_group_that_cannot_be_bound_fails_no_start_and_is_said_once(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "make_group", os.mkdir)  # no control file appears in it
    made = opened(machine, tmp_path / "r", "pids")

    assert made.make("1", Bounds(processes=7)) is None
    assert made.make("2", Bounds(processes=7)) is None

    assert caplog.text.count("run without limits") == 1
    assert not list(machine.iterdir())


def test_what_the_counters_say(machine: Path, tmp_path: Path) -> None:
    group = opened(machine, tmp_path / "r", "memory", "pids").make("1", Bounds(256 * MIB, 10))
    assert group is not None
    assert group.troubles() == (None, None)
    folder = Path(group.folders[0])
    (folder / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 1\n")
    (folder / "pids.events").write_text("max 3\n")

    killed, refused = group.troubles()

    assert killed == "out of memory (limit 256 MiB)"
    assert refused is not None
    assert refused.startswith("3 times")
    assert "max_processes" in refused
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    assert not out_of_memory("separate", str(folder))
    assert refusals(str(tmp_path)) == 0, "it is gone"


def test_a_death_of_memory_is_told_as_such() -> None:
    words = "out of memory (limit 5 MiB)"

    for code in (-9, 137, 70):
        _, failure = outcome(code, killed=False, output="", exceeded=words)
        assert failure is not None
        assert failure.reason == words
    assert outcome(0, killed=False, output="", exceeded=words)[1] is None, "a child of it died, and it went on"


def test_off_is_off(tmp_path: Path) -> None:
    off = Limits("off", 10)
    off.open(tmp_path)

    assert off.make("1", Bounds(processes=7)) is None
    assert set(off.look().missing.values()) == {"the settings say so (embedded.limits)"}


def test_ending_a_group_that_is_gone(tmp_path: Path) -> None:
    assert end_group(str(tmp_path / "none"))
    assert Group("none", {}).end()


def test_a_group_that_comes_back_late_to_its_template_does_not_push_out_another() -> None:
    """It would be nobody's then, and stay until the engine ends."""
    template = object.__new__(Template)
    template.group, template._closed = None, False
    first, second = Group("none", {}), Group("none", {})

    assert template.give_back(first)
    assert not template.give_back(second)
    assert template.take_group() is first
