"""`modalnomad app logs` on what `up` wrote: filters, following, several `up`s after another, floods."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import pytest

from modalnomad.embedded.log_reader import LogReader, Wanted
from modalnomad.embedded.log_segments import BLOCK, LogWriter, app_folder, encoded
from modalnomad.model.replica import LogLine
from tests.support.serve import command_environment, run_command
from tests.support.up import own_home, store, up

PROGRAM = """
import os, sys, threading
import modal

app = modal.App("talk")

@app.function()
@modal.fastapi_endpoint()
def f(n: int = 1, word: str = "line"):
    for number in range(n):
        print(word, number)
    print("aside", file=sys.stderr)
    return "done"

@app.function()
@modal.fastapi_endpoint()
def g(word: str):
    print(word)

@app.function()
@modal.fastapi_endpoint()
def flood():
    def run():
        data = (b"x" * 99 + b"\\n") * 600
        while True:
            os.write(1, data)
    threading.Thread(target=run, daemon=True).start()
    return "flooding"
"""


def put(folder: Path) -> Path:
    """A home in which the program is deployed."""
    file = folder / "talk.py"
    file.write_text(PROGRAM)
    home = own_home(folder)
    store(home, file)
    return home


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home whose `up` has ended, and the id of a request to `g`."""
    home = put(tmp_path_factory.mktemp("talk"))
    with up(home) as u:
        assert httpx.get(u.url("f"), params={"n": 150}, timeout=30).json() == "done"
        request_id = httpx.get(u.url("g"), params={"word": 'say "žluť" 🐎'}, timeout=30).headers["x-request-id"]
    return home, request_id


def logs(home: Path, *options: str, app: str = "talk") -> list[dict[str, Any]]:
    done = run_command("app", "logs", app, "--json", *options, home=home)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def words(home: Path, *options: str) -> list[str]:
    return [line["line"] for line in logs(home, *options) if line["stream"] == "stdout"]


def test_what_was_written_is_there_when_up_is_down(talked: tuple[Path, str]) -> None:
    home, request_id = talked
    everything = logs(home, "-n", "1000")
    said = [line for line in everything if line["function"] == "g" and line["stream"] == "stdout"]

    assert words(home, "--function", "f", "-n", "1000") == [f"line {number}" for number in range(150)]
    assert [(line["line"], line["request_id"], line["replica"]) for line in said] == [
        ('say "žluť" 🐎', request_id, "0.1")
    ]
    assert everything == sorted(everything, key=lambda line: line["time"])
    ended = [line["function"] for line in everything if line["stream"] == "system" and line["line"] == "ended"]
    assert sorted(ended) == ["f", "g"]
    assert everything[0] | {"time": 0} == {
        "event": "log",
        "time": 0,
        "environment": "main",
        "app": "talk",
        "function": "f",
        "revision": everything[0]["revision"],
        "replica": "0.1",
        "stream": "system",
        "line": everything[0]["line"],
        "request_id": None,
    }
    assert everything[0]["line"].startswith("started: ")


def test_the_last_hundred_lines_come_without_being_asked(talked: tuple[Path, str]) -> None:
    home, _ = talked

    assert logs(home) == logs(home, "-n", "1000")[-100:]
    assert len(logs(home, "--since", "1h")) > 150
    assert logs(home, "--since", "1h", "--tail", "3") == logs(home, "-n", "3")
    assert logs(home, "--until", "1h") == []
    assert logs(home, "-n", "0") == []


def test_only_what_was_asked_for_comes(talked: tuple[Path, str]) -> None:
    home, request_id = talked

    assert [line["function"] for line in logs(home, "--request-id", request_id)] == ["g"]
    assert words(home, "--search", '"žluť"') == ['say "žluť" 🐎']
    assert [line["line"] for line in logs(home, "--source", "stderr")] == ["aside"]
    assert {line["stream"] for line in logs(home, "-s", "stderr", "-s", "system")} == {"stderr", "system"}
    assert logs(home, "--replica", "0.7") == []
    assert len(logs(home, "--replica", "0.1", "-n", "1000")) == len(logs(home, "-n", "1000"))
    middle = logs(home, "-n", "50")[0]["time"]
    after = logs(home, "--since", _iso(middle))
    assert after[0]["time"] >= middle > logs(home, "--until", _iso(middle - 0.001))[-1]["time"]


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}+00:00"


def test_people_see_who_said_it_and_when(talked: tuple[Path, str]) -> None:
    home, request_id = talked
    plain = run_command("app", "logs", "talk", "--function", "g", home=home).stdout
    timed = run_command("app", "logs", "talk", "--function", "g", "--timestamps", home=home).stdout

    assert f'g[0] {request_id[:8]} | say "žluť" 🐎\n' in plain
    assert "g[0] | · started: " in plain
    assert timed.splitlines()[0].startswith(time.strftime("%Y-"))
    assert len(timed) > len(plain)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nope"], 1, "there is no App nope in environment main"),
        (["nope"], 1, "there are: talk"),
        (["talk", "-e", "dev"], 1, "--env main"),
        (["..", "-e", "main"], 1, "there is no App"),
        (["../main/talk"], 1, "is not the name of an App"),
        (["talk", "--since", "soon"], 2, "is no time"),
        (["talk", "--follow", "--until", "1h"], 2, "--until"),
        (["talk", "--source", "nobody"], 2, "nobody"),
    ],
)
def test_what_cannot_be_is_said(talked: tuple[Path, str], arguments: list[str], code: int, message: str) -> None:
    refused = run_command("app", "logs", *arguments, home=talked[0])

    assert refused.returncode == code
    assert message in refused.stderr
    assert refused.stdout == ""


def test_an_app_that_has_written_nothing_is_known(tmp_path: Path) -> None:
    quiet = run_command("app", "logs", "talk", home=put(tmp_path))

    assert quiet.returncode == 0
    assert "has written nothing yet" in quiet.stderr


class Follower:
    """`app logs -f --json`, its lines as they come."""

    def __init__(self, home: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modalnomad", "app", "logs", "talk", "-f", "--json", *options],
            env=command_environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify()

    def wait_for(self, wanted: Callable[[], bool], timeout: float = 30) -> None:
        with self._changed:
            assert self._changed.wait_for(wanted, timeout), self.lines[-5:]

    def said(self, text: str) -> Callable[[], bool]:
        return lambda: any(line["line"] == text for line in self.lines)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        self._reader.join(10)
        return code

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_following_goes_on_from_one_up_to_the_next(tmp_path: Path) -> None:
    home = put(tmp_path)
    with Follower(home, "--source", "stdout") as follower:
        for word in ("first", "second"):
            with up(home) as u:
                assert httpx.get(u.url("f"), params={"word": word, "n": 3}, timeout=30).json() == "done"
                follower.wait_for(follower.said(f"{word} 2"))
        assert [line["line"] for line in follower.lines] == [
            f"{word} {number}" for word in ("first", "second") for number in range(3)
        ]
        assert follower.end() == 0
        assert follower.process.stderr is not None
        assert "Traceback" not in follower.process.stderr.read()


def test_a_follower_ends_when_nobody_reads_any_more(talked: tuple[Path, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "app", "logs", "talk", "-f", "-n", "1"],
        env=command_environment(talked[0]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()  # and no line comes
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_up_that_was_killed_loses_nothing_that_is_older_than_a_second(tmp_path: Path) -> None:
    home = put(tmp_path)
    with contextlib.suppress(AssertionError), up(home) as u:
        assert httpx.get(u.url("f"), params={"word": "kept"}, timeout=30).json() == "done"
        _until(lambda: any(b"kept 0" in path.read_bytes() for path in (home / "logs").rglob("*.jsonl")))
        os.kill(u.pid, signal.SIGKILL)
    assert "kept 0" in words(home)
    with up(home) as u:
        assert httpx.get(u.url("f"), params={"word": "again"}, timeout=30).json() == "done"
    assert {"kept 0", "again 0"} <= set(words(home))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_up_serves_on_where_no_log_can_be_written(tmp_path: Path) -> None:
    home = put(tmp_path)
    (home / "logs").write_text("in the way")
    with up(home) as u:
        for word in ("one", "two"):
            assert httpx.get(u.url("f"), params={"word": word}, timeout=30).json() == "done"
            _until(lambda: any("cannot write the logs" in line for line in list(u.stderr_lines)))
        (home / "logs").unlink()
        assert httpx.get(u.url("f"), params={"word": "three"}, timeout=30).json() == "done"
    complaints = [line for line in u.stderr_lines if "cannot write the logs" in line]

    assert len(complaints) == 1
    assert words(home)[-1] == "three 0"
    (missing,) = [line["line"] for line in logs(home, "-s", "system") if "left out" in line["line"]]
    assert "lines are left out here: they could not be written to disk" in missing


@pytest.mark.slow
@pytest.mark.timeout(240)  # it is looked at for long, and 64 MiB of logs are searched
def test_a_flood_takes_its_share_and_no_more(tmp_path: Path) -> None:
    home = put(tmp_path)
    with up(home) as u:
        usual = [_asked(u.url("g"), "before") for _ in range(10)]
        assert httpx.get(u.url("flood"), timeout=30).json() == "flooding"
        platform = psutil.Process(u.pid)
        _until_calm(platform)
        took = [_asked(u.url("g"), f"quiet {number}") for number in range(40)]
        assert platform.cpu_percent(interval=2.0) < 60
        assert sorted(took)[len(took) // 2] < 10 * sorted(usual)[len(usual) // 2] + 0.5
        assert platform.memory_info().rss < 400 * 1024 * 1024
    size = sum(path.stat().st_size for path in (home / "logs").rglob("*.jsonl"))

    assert size <= 64 * 1024 * 1024
    kept = words(home, "--function", "g", "--search", "quiet")
    assert kept == [f"quiet {number}" for number in range(40)][-len(kept) :]
    # The limit is the App's: where forty answers take long, the flood may push out the first of them. Files go whole.
    assert len(kept) == 40 or size > 56 * 1024 * 1024


def _asked(url: str, word: str) -> float:
    """Seconds it took."""
    began = time.monotonic()
    assert httpx.get(url, params={"word": word}, timeout=30).status_code == 200
    return time.monotonic() - began


def _until_calm(process: psutil.Process) -> None:
    """The flood's burst is over: it is read at its rate from here on."""
    deadline = time.monotonic() + 40
    while process.cpu_percent(interval=1.0) > 50:
        assert time.monotonic() < deadline, "the flood takes all of a core"


def test_the_end_of_a_large_log_is_found_without_reading_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = own_home(tmp_path)
    writer = LogWriter(app_folder(home, "main", "large"), 64 * 1024 * 1024)
    for block in range(64):
        lines = [LogLine(block * 1000.0 + n, "large", "f", "r.0.1", "stdout", f"{n} " + "x" * 900) for n in range(1000)]
        writer.append([encoded(line) for line in lines])
    sizes: list[int] = []

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, offset)

    pread = os.pread
    monkeypatch.setattr(os, "pread", counted)
    with contextlib.closing(LogReader(home, "main", "large", Wanted())) as reader:
        assert len(reader.last(100)) == 100
    assert 0 < sum(sizes) <= 4 * BLOCK
    assert [line["line"].split()[0] for line in logs(home, app="large")] == [str(n) for n in range(900, 1000)]
