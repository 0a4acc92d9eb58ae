"""`modalnomad run`: programs with local entrypoints and Functions, through the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.leftovers import wait_gone
from tests.support.runner import wait_until
from tests.support.serve import command_environment, run_command, shared_home

PROGRAM = """
import asyncio, os, sys, time
import modal

app = modal.App("jobs")

@app.function(max_containers=3)
@modal.concurrent(max_inputs=4)
def square(x: int):
    print("squaring", x)
    return x * x

@app.function(retries=2)
def flaky(path: str) -> str:
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) < 3:
        raise RuntimeError("not yet")
    return f"after {os.path.getsize(path)} tries"

@app.function()
def broken(how: str = "raise"):
    if how == "raise":
        raise LookupError("nothing of the kind")
    if how == "die":
        os._exit(9)
    if how == "lambda":
        return lambda: None

@app.function(timeout=1, startup_timeout=60)
async def endless():
    print("begun", flush=True)
    await asyncio.sleep(3600)

@app.function()
def hang():
    print("hanging", flush=True)
    for _ in range(36000):
        time.sleep(0.1)

@app.cls()
class Shelf:
    label: str = modal.parameter()
    size: int = modal.parameter(default=2)

    @modal.enter()
    def enter(self):
        if self.label == "full":
            raise MemoryError("no room on this shelf")

    @modal.method()
    def put(self, book: str) -> str:
        return f"{book} on {self.label}/{self.size}"

    @modal.exit()
    def exit(self):
        print("closing", self.label)

    @modal.fastapi_endpoint()
    def page(self):
        return 1

@app.function()
@modal.fastapi_endpoint()
def web():
    return 1

@app.local_entrypoint()
async def main(n: int = 3, fast: bool = False):
    print("here", n, fast, modal.is_local())
    print("squares", [result async for result in square.map.aio(range(n))])
    print(await Shelf(label="low").put.remote.aio("Walden"))
    call = await square.spawn.aio(9)
    print(await call.get.aio())
    try:
        await broken.remote.aio()
    except LookupError as error:
        print("caught", error)
    return "all done"

@app.local_entrypoint()
def fails():
    square.remote("a", "b", "c")

@app.local_entrypoint()
def leaves(*args):
    print("asked:", input(), args)
    sys.exit(len(args))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    (made / "jobs.py").write_text(PROGRAM)
    (made / "single.py").write_text(
        "import modal\napp = modal.App()\n@app.function()\ndef only(name: str = 'you') -> bytes:\n"
        "    return name.encode()\n"
    )
    (made / "pages.py").write_text(
        "import modal\napp = modal.App()\n@app.function()\n@modal.fastapi_endpoint()\ndef page(): return 1\n"
    )
    (made / "list.py").write_text(
        "import modal\napp = modal.App()\n@app.function()\ndef total(items: list[int]): return 1\n"
        "@app.function()\ndef numbers():\n    yield 1\n"
    )
    return made


def run(folder: Path, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Any:
    return run_command("run", *arguments, cwd=folder, stdin=stdin, env=env)


def test_an_entrypoint_with_its_calls(folder: Path) -> None:
    done = run(folder, "jobs.py::main", "--n", "40", "--fast")

    assert done.returncode == 0, done.stderr
    places = {line.partition("]")[0] for line in done.stdout.splitlines() if "| squaring" in line}
    assert "square[0" in places
    assert places <= {"square[0", "square[1", "square[2"}, "max_containers"
    for line in (
        "here 40 True True",
        f"squares {[n * n for n in range(40)]}",
        "Walden on low/2",
        "81",
        "caught nothing of the kind",
    ):
        assert line in done.stdout.splitlines()
    assert "| squaring 39\n" in done.stdout
    assert "| closing low\n" in done.stdout, "replicas end in order"
    assert "all done" not in done.stdout, "what an entrypoint returns is for --write-result"


def test_only_what_the_program_says_with_quiet(folder: Path) -> None:
    done = run(folder, "-q", "jobs.py::Shelf.put", "--label", "top", "--book", "Emma")

    assert (done.returncode, done.stdout, done.stderr) == (0, "Emma on top/2\n", "")


def test_the_single_function_of_a_file_and_its_result_in_a_file(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "-w", str(tmp_path / "result"), "single.py", "--name", "Ada")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_bytes() == b"Ada"
    unfit = run(folder, "-q", "-w", str(tmp_path / "other"), "jobs.py::square", "--x", "2")
    assert unfit.returncode == 1
    assert "--write-result takes a str or bytes, and `square` returned a int" in unfit.stderr
    assert not (tmp_path / "other").exists()


def test_exit_codes_and_standard_input_are_the_programs_own(folder: Path) -> None:
    done = run(folder, "-q", "jobs.py::leaves", "--one", "-2", "three", stdin="question\n")

    assert done.stdout == "asked: question ('--one', '-2', 'three')\n"
    assert done.returncode == 3


def test_retries_and_what_is_told_of_them(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "jobs.py::flaky", "--path", str(tmp_path / "tries"))

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("after 3 tries\n")
    assert done.stderr.count("jobs/flaky failed (RuntimeError: not yet); again in 1 s") == 2


def test_errors_of_the_remote_side(folder: Path) -> None:
    raised = run(folder, "-q", "jobs.py::broken")
    assert raised.returncode == 1
    assert raised.stderr.startswith("Traceback (most recent call last):\n")
    assert raised.stderr.endswith("LookupError: nothing of the kind\n")
    assert "modalnomad_sdk" not in raised.stderr, "the user's own lines only"

    nested = run(folder, "-q", "jobs.py::fails")
    assert nested.returncode == 1
    assert "in fails\n" in nested.stderr
    assert "direct cause" in nested.stderr, "the remote traceback, then the local one"
    assert "/modalnomad_sdk/" not in nested.stderr

    unfit = run(folder, "-q", "jobs.py::broken", "--how", "lambda")
    assert unfit.stderr.startswith("Error: the result of `broken` is a function, which cannot be pickled")

    slow = run(folder, "-q", "jobs.py::endless")
    assert (slow.returncode, slow.stderr) == (1, "Error: the call ran longer than its timeout of 1 s\n")


def test_replicas_that_die_or_do_not_start(folder: Path) -> None:
    died = run(folder, "-q", "jobs.py::broken", "--how", "die")
    assert died.returncode == 1
    assert "Error: The replica of jobs/broken went away while the call ran.\n" in died.stderr

    full = run(folder, "-q", "jobs.py::Shelf.put", "--label", "full", "--book", "x")
    assert full.returncode == 1
    assert "MemoryError: no room on this shelf\n" in full.stderr
    assert "Error: jobs/Shelf: the program failed while it was starting\n" in full.stderr


def test_everything_as_json(folder: Path) -> None:
    done = run(folder, "--json", "jobs.py::square", "--x", "3")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    (log,) = [event for event in events if event["event"] == "log" and event["stream"] == "stdout"]
    assert (log["function"], log["line"]) == ("square", "squaring 3")
    last = events[-1]
    assert (last["event"], last["exit_code"], last["result"]) == ("returned", 0, 9)

    entry = run(folder, "--json", "jobs.py::leaves", stdin="x\n")
    events = [json.loads(line) for line in entry.stdout.splitlines()]
    assert {"event": "output", "stream": "stdout", "line": "asked: x ()"} in events

    failed = run(folder, "--json", "jobs.py::nothing")
    assert failed.returncode == 1
    assert json.loads(failed.stdout.splitlines()[-1])["event"] == "error"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["jobs.py"], 1, ["several things to run: main, fails, leaves, square", "jobs.py::main"]),
        (["jobs.py::nothing"], 1, ["`nothing` is not there", "to be run here: main, fails", "Shelf.put"]),
        (["jobs.py::web"], 1, ["`web` is a web endpoint", "modalnomad serve jobs.py"]),
        (["jobs.py::Shelf.page"], 1, ["`Shelf.page` is a web endpoint", "modalnomad serve jobs.py"]),
        (["jobs.py::Shelf.enter"], 1, ["no method enter with @modal.method()", "it has: put"]),
        (["pages.py"], 1, ["`page` is a web endpoint", "modalnomad serve pages.py"]),
        (["list.py::total", "--items", "1"], 1, ["list.py:3: `total` takes `items: list[int]`", "annotate it as str"]),
        (["list.py::numbers"], 1, ["`numbers` is a generator, which cannot be run"]),
        (["missing.py"], 1, ["missing.py: no such file"]),
        (["jobs.py::square"], 2, ["usage: modalnomad run jobs.py::square", "required: --x"]),
        (["jobs.py::Shelf.put", "--book", "x"], 2, ["required: --label"]),
        (["jobs.py::main", "--n", "some"], 2, ["invalid int value: 'some'"]),
        (["--nonsense", "jobs.py"], 2, ["No such option"]),
        ([], 2, ["Missing argument"]),
    ],
)
def test_wrong_usage_says_what_to_do(folder: Path, arguments: list[str], code: int, words: list[str]) -> None:
    done = run(folder, *arguments)

    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_help_of_a_program(folder: Path) -> None:
    done = run(folder, "jobs.py::Shelf.put", "--help")

    assert done.returncode == 0
    for word in ("--label TEXT", "[of the class; required]", "--book TEXT", "[of the class; default: 2]"):
        assert word in done.stdout


def started(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    out = folder / f"out-{os.getpid()}-{len(list(folder.iterdir()))}"
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "modalnomad", "run", *arguments],
            env=command_environment(shared_home()),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    return process, out


def test_ctrl_c_ends_calls_and_replicas(folder: Path) -> None:
    process, out = started(folder, "jobs.py::hang")
    try:
        wait_until(lambda: "| hanging\n" in out.read_text(), "it runs")
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait(10)
    wait_gone(children)
    assert "Traceback" not in out.read_text()


def test_a_killed_command_takes_its_program_and_its_replicas_along(folder: Path) -> None:
    process, out = started(folder, "jobs.py::hang")
    try:
        wait_until(lambda: "| hanging\n" in out.read_text(), "it runs")
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait(10)
    assert len(children) >= 2, "the program and a replica"
    wait_gone(children)
