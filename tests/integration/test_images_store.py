"""The image store with the real uv: built once, complete or absent, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from modalnomad_sdk.store import (
    BuildCancelled,
    BuildFailed,
    DiskFull,
    ImageStore,
    Inputs,
    PythonMissing,
    StoreError,
    definition_digest,
)
from modalnomad_sdk.store import process as commands

SIX = (
    "six==1.17.0 --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274"
    " --hash=sha256:ff70335d468e7eb6ec65b95b99d3a2836546063f63acc5171de367e834932a81\n"
)


def definition(store: ImageStore, *steps: dict[str, Any]) -> dict[str, Any]:
    python = store.find_python(None)
    return {
        "schema": 1,
        "python": python.version,
        "implementation": python.implementation,
        "platform": python.platform,
        "steps": list(steps),
    }


def install(requirements: str = SIX, verify: bool = True) -> dict[str, Any]:
    return {"kind": "install", "requirements": requirements, "verify": verify}


def run(command: str, **more: Any) -> dict[str, Any]:
    return {"kind": "run", "command": command, **more}


def leftovers(store: ImageStore) -> list[str]:
    return sorted(entry.name for entry in store.root.iterdir() if entry.name.startswith((".building", ".trash")))


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for a value."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return found


def ended(pid: int) -> bool:
    """Gone, or waiting for somebody to take note of it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def strangers() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes a test starts; none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_an_environment_is_built_complete_and_found_again(store: ImageStore) -> None:
    wanted = definition(store, install())
    lines: list[str] = []
    assert store.path(definition_digest(wanted)) is None
    path = store.build(wanted, lines.append)
    assert path == store.root / definition_digest(wanted)
    done = subprocess.run(
        [path / "bin" / "python", "-I", "-c", "import six; print(six.__file__, six.__cached__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    source, cached = map(Path, done.stdout.split())
    assert source.is_relative_to(path)
    assert cached.is_file(), "bytecode is written while the image is built"
    assert any("six==1.17.0" in line for line in lines)
    assert "six==1.17.0" in store.log(path.name).read_text("utf-8")
    assert leftovers(store) == []

    # Neither a process nor a lock is needed to find it again: a store with no uv at all does.
    again: list[str] = []
    assert ImageStore(store.root, uv=Path("/nonexistent/uv")).build(wanted, again.append) == path
    assert again == []


def test_list_tells_size_packages_and_use(store: ImageStore) -> None:
    before = time.time() - 1
    path = store.build(definition(store, install()))
    (image,) = store.list()
    assert (image.digest, image.path, image.packages) == (path.name, path, ("six==1.17.0",))
    assert image.python == store.find_python(None).version
    assert image.size > 10_000
    assert before < min(image.created, image.last_used), "a file's time is that of the clock's last tick"
    assert not image.in_use


def test_a_failing_install_shows_uvs_words_and_leaves_nothing(store: ImageStore) -> None:
    wanted = definition(store, install("six==1.17.0 --hash=sha256:" + "0" * 64 + "\n"))
    with pytest.raises(BuildFailed, match="installing packages failed") as caught:
        store.build(wanted)
    assert "hash" in caught.value.output.lower()
    assert "six" in caught.value.output
    assert store.path(definition_digest(wanted)) is None
    assert store.list() == ()
    assert leftovers(store) == []
    assert "six" in store.log(definition_digest(wanted)).read_text("utf-8")


def test_commands_run_in_the_environment_and_their_scripts_survive_the_rename(store: ImageStore) -> None:
    command = (
        'test "$A" = 1 && test "$(basename $PWD)" = sub && python -c \'import six, sys; print(sys.prefix)\' && '
        "printf '#!%s/bin/python\\nimport six; print(\"tool\", six.__version__)\\n' $VIRTUAL_ENV > "
        "$VIRTUAL_ENV/bin/tool && chmod +x $VIRTUAL_ENV/bin/tool"
    )
    lines: list[str] = []
    path = store.build(definition(store, install(), run(command, environment={"A": "1"}, workdir="sub")), lines.append)
    assert any(line.endswith("running " + command) for line in lines)
    done = subprocess.run([path / "bin" / "tool"], capture_output=True, text=True, check=True)
    assert done.stdout == "tool 1.17.0\n"


def test_a_failing_command_shows_its_words_and_leaves_nothing(store: ImageStore) -> None:
    wanted = definition(store, run("echo to stdout; echo to stderr >&2; exit 3"))
    with pytest.raises(BuildFailed, match=r"running .* failed \(exit status 3\)") as caught:
        store.build(wanted)
    assert caught.value.output == "to stdout\nto stderr"
    assert store.list() == ()
    assert leftovers(store) == []


def test_commands_see_nothing_personal(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pa55word")
    lines: list[str] = []
    store.build(definition(store, run("env")), lines.append)
    assert any(line.startswith("PATH=") for line in lines)
    assert not any("pa55word" in line for line in lines)


def test_no_line_shows_what_must_not_be_shown(store: ImageStore) -> None:
    lines: list[str] = []
    wanted = definition(store, run("echo $X | tr a-z A-Z; echo done", environment={"X": "pa55word"}))
    path = store.build(wanted, lines.append, Inputs(secrets=frozenset({"PA55WORD"})))
    assert "****" in lines
    assert "PA55WORD" not in "\n".join(lines) + store.log(path.name).read_text("utf-8")


def test_processes_a_command_leaves_are_ended(store: ImageStore, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    store.build(definition(store, run(f"sleep 300 & echo $! > {note}")))
    pid = int(note.read_text())
    until(lambda: ended(pid))


def test_the_last_words_of_a_command_are_read_however_late_its_builder_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at when it has said nothing for a moment; here it says all it has to, and ends, just then."""
    gate, has_ended = tmp_path / "gate", commands._has_ended

    def late(pid: int) -> bool:
        gate.touch()
        return bool(until(lambda: has_ended(pid)))

    monkeypatch.setattr(commands, "_has_ended", late)
    command = f"while [ ! -e {gate} ]; do sleep 0.02; done; echo the last words"
    output = commands.Child().run(["/bin/sh", "-c", command], cwd=tmp_path, environment=os.environ)
    assert output == "the last words"


def test_what_a_command_started_in_the_background_has_a_moment_for_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sh -c 'exec > >(tee log); …'` has it: the command ends before `tee` has said all."""
    gate, has_ended = tmp_path / "gate", commands._has_ended
    monkeypatch.setattr(commands, "POLL", 20.0)
    monkeypatch.setattr(commands, "_has_ended", lambda pid: until(lambda: has_ended(pid)))
    command = f"(while [ ! -e {gate} ]; do sleep 0.02; done; echo late) & echo early"
    child = commands.Child(on_line=lambda _: gate.touch())
    assert child.run(["/bin/sh", "-c", command], cwd=tmp_path, environment=os.environ) == "early\nlate"


BUILDER = """
import json, sys
from pathlib import Path
from modalnomad_sdk.store import ImageStore
path = ImageStore(Path(sys.argv[1])).build(json.loads(sys.argv[2]), lambda line: print(line, flush=True))
print("path", path, flush=True)
"""


def test_two_processes_at_once_build_once(
    store: ImageStore, tmp_path: Path, strangers: list[subprocess.Popen[str]]
) -> None:
    runs = tmp_path / "runs"
    gate = tmp_path / "gate"
    wanted = definition(store, run(f"echo x >> {runs}; while [ ! -e {gate} ]; do sleep 0.02; done"))
    command = [sys.executable, "-c", BUILDER, str(store.root), json.dumps(wanted)]
    strangers.extend(subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    until(runs.exists)
    # The gate opens when one builds and the other says that it waits; whoever waits has said so on its output.
    heard: list[str] = []
    lock = threading.Lock()

    def listen(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with lock:
                heard.append(line)

    listeners = [threading.Thread(target=listen, args=(process,)) for process in strangers]
    for listener in listeners:
        listener.start()
    until(lambda: any("another process is building" in line for line in heard))
    gate.touch()
    for listener in listeners:
        listener.join(30)
    assert [process.wait(30) for process in strangers] == [0, 0]
    assert runs.read_text() == "x\n"
    assert heard.count(f"path {store.root / definition_digest(wanted)}\n") == 2
    assert any("was built by another process" in line for line in heard)


def test_cancelling_ends_every_process_and_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    wanted = definition(store, run(f"sh -c 'echo $$ > {note}; exec sleep 300'"))
    cancelled = threading.Event()

    def cancel() -> None:
        until(lambda: note.exists() and note.read_text())
        cancelled.set()

    threading.Thread(target=cancel).start()
    with pytest.raises(BuildCancelled):
        store.build(wanted, None, Inputs(cancelled=cancelled))
    pid = int(note.read_text())
    until(lambda: ended(pid))
    assert leftovers(store) == []
    assert store.list() == ()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_builder_that_dies_takes_its_commands_along_and_blocks_nobody(
    store: ImageStore, tmp_path: Path, strangers: list[subprocess.Popen[str]], number: int
) -> None:
    note = tmp_path / "pid"
    wanted = definition(store, run(f"if [ ! -e {note} ]; then echo $$ > {note}; sleep 300; fi"))
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(store.root), json.dumps(wanted)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    strangers.append(builder)
    until(lambda: note.exists() and note.read_text())
    builder.send_signal(number)
    builder.wait(20)
    pid = int(note.read_text())
    until(lambda: ended(pid))
    assert store.path(definition_digest(wanted)) is None
    assert bool(leftovers(store)) == (number == signal.SIGKILL)

    assert store.build(wanted) == store.root / definition_digest(wanted)
    assert leftovers(store) == []


def test_prune_keeps_what_is_kept_and_what_is_in_use(store: ImageStore, strangers: list[subprocess.Popen[str]]) -> None:
    kept, running, held, idle = (store.build(definition(store, run(f"echo {n}"))) for n in range(4))
    process = subprocess.Popen([running / "bin" / "python", "-c", "input()"], stdin=subprocess.PIPE, text=True)
    strangers.append(process)
    with store.hold(held.name):
        until(lambda: {image.digest for image in store.list() if image.in_use} == {running.name, held.name})
        pruned = store.prune([kept.name])
        assert pruned.removed == (idle.name,)
        assert set(pruned.busy) == {running.name, held.name}
        assert pruned.freed > 0
    assert store.path(idle.name) is None
    assert not idle.exists()
    process.kill()
    process.communicate()
    assert set(store.prune([kept.name]).removed) == {running.name, held.name}
    assert [image.digest for image in store.list()] == [kept.name]
    with pytest.raises(StoreError, match="not in the store"), store.hold(idle.name):
        pass


def test_who_only_looks_whether_an_image_is_in_use_keeps_nobody_from_using_it(store: ImageStore) -> None:
    """As every `image list` and every prune does; on a busy machine they take a while."""
    path = store.build(definition(store, run("true")))
    looking = threading.Event()

    def look() -> None:
        with store.claim(path.name):
            looking.set()
            time.sleep(0.2)

    looker = threading.Thread(target=look)
    looker.start()
    assert looking.wait(20)
    with store.hold(path.name) as held:
        assert held == path
    looker.join()


def test_an_incomplete_environment_is_never_used_and_built_anew(store: ImageStore) -> None:
    wanted = definition(store, install())
    path = store.build(wanted)
    (path / "modalnomad-image.json").unlink()
    assert store.path(path.name) is None
    assert store.list() == ()
    assert store.build(wanted) == path

    # Its base interpreter went away.
    (path / "bin" / "python").unlink()
    (path / "bin" / "python").symlink_to("/nonexistent/python")
    assert store.path(path.name) is None
    assert store.build(wanted) == path
    assert store.path(path.name) == path


def test_a_python_that_is_not_installed_is_told_with_what_is(store: ImageStore) -> None:
    with pytest.raises(PythonMissing, match=r"Python 3\.77 is not installed on this machine \(installed: ") as caught:
        store.find_python("3.77")
    assert store.find_python(None).version in caught.value.message
    assert caught.value.hint is not None
    assert "never downloads" in caught.value.hint


def test_what_is_known_of_interpreters_is_learnt_once(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.find_python(None)
    known = json.loads((store.root / "pythons.json").read_text("utf-8"))
    assert first.executable in {value["executable"] for value in known.values()}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an interpreter was asked again")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert ImageStore(store.root).find_python(None) == first


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tiny file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        store = ImageStore(folder / "images")
        with pytest.raises(DiskFull, match="no space left"):
            store.build(definition(store, install(), run("head -c 1000000 /dev/zero > big")))
        assert store.list() == ()
        assert leftovers(store) == []
    finally:
        # Lazily: a process of the build that was killed may not be gone yet.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_folders_and_logs_are_for_their_owner_alone(store: ImageStore) -> None:
    path = store.build(definition(store, run("true")))
    assert oct(store.root.stat().st_mode & 0o777) == "0o700"
    assert oct(store.log(path.name).stat().st_mode & 0o777) == "0o600"
    assert os.listdir(store.root / ".locks") == [path.name]


def test_one_who_waits_for_a_build_does_not_wait_for_those_who_use_it(store: ImageStore, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wanted = definition(store, run(f"while [ ! -e {gate} ]; do sleep 0.02; done"))
    lines: list[str] = []
    held, done = threading.Event(), threading.Event()

    def build_and_hold() -> None:
        store.build(wanted)
        with store.hold(definition_digest(wanted)):
            held.set()
            done.wait(60)

    first = threading.Thread(target=build_and_hold)
    first.start()
    until(lambda: [entry for entry in leftovers(store) if entry.startswith(".building")])
    built: list[Path] = []
    second = threading.Thread(target=lambda: built.append(store.build(wanted, lines.append)), daemon=True)
    second.start()
    try:
        until(lambda: lines)
        assert "waiting for it" in lines[0]
        gate.touch()
        assert held.wait(20)
        second.join(20)
        assert built == [store.path(definition_digest(wanted))], lines
    finally:
        gate.touch()
        done.set()
        first.join(20)
