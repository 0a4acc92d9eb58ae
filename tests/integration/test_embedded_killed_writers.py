"""kill -9 at any point of any write: the home holds the old or the new, and nothing stays locked or lying about."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded.store import TEMPORARY_PREFIX, FileLock, held_since
from tests.support.killed_writer import Home, Operation, State, after, key_of
from tests.support.repository import ROOT

KILLS = 200
MOST = 4
"""Operations a writer begins before it is killed in one of them."""


class Writers:
    """Processes of which each is killed at a random point of what it does."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._usual = 0.01
        """Seconds an operation takes, about."""

    def one(self, seed: str, rng: random.Random) -> tuple[list[Operation], Operation | None]:
        """What one did, and what it was doing when it was killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        pid = self._read()["pid"]
        began: list[Operation] = []
        done = 0
        for _ in range(rng.randint(1, MOST)):
            while "begin" not in (message := self._read()):
                done += self._count(message)
            began.append(message["begin"])
        time.sleep(self._usual * rng.random())  # a random point of the operation; nothing waits for this
        os.kill(pid, signal.SIGKILL)
        while "ended" not in (message := self._read()):
            if "begin" in message:
                began.append(message["begin"])
            done += self._count(message)
        return began[:done], began[done] if done < len(began) else None

    def _count(self, message: dict[str, Any]) -> int:
        if "done" not in message:
            return 0
        self._usual += 0.05 * (message["seconds"] - self._usual)
        return 1

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writers' parent ended"
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def writers(home: Path, scratch: Path) -> Iterator[Writers]:
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.killed_writer", str(home), str(scratch)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'sdk'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Writers(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def apply(state: State, operation: Operation) -> State:
    """The state after it."""
    key = key_of(operation)
    new = after(state.get(key), operation)
    rest = {other: value for other, value in state.items() if other != key}
    return rest if new is None else {**rest, key: new}


def left_behind(home: Path) -> list[Path]:
    return list(home.rglob(f"{TEMPORARY_PREFIX}*"))


def nothing_is_locked(home: Path) -> None:
    assert held_since(home / "locks") == {}
    folders = [path for path in home.rglob("*") if path.is_dir()]
    for path in (home / "discovery" / "lock", home / "secrets" / "lock", *folders):
        lock = FileLock(path)
        lock.acquire(wait=False)
        lock.release()


@pytest.mark.timeout(240)  # some twelve seconds where nothing else runs
async def test_two_hundred_kills_leave_the_old_or_the_new(tmp_path: Path) -> None:
    seed = str(time.time_ns())
    print(f"seed {seed}")
    rng = random.Random(seed)
    home = tmp_path / "home"
    state: State = {}
    total = under_way = new_ones = 0
    with writers(home, tmp_path / "scratch") as made:
        for number in range(KILLS):
            where = f"seed {seed}, kill {number}"
            done, doing = made.one(f"{seed} {number}", rng)
            for operation in done:
                state = apply(state, operation)
            total += len(done)
            found = await Home(home, tmp_path / "scratch").read()
            if doing is not None:
                under_way += 1
                changed = apply(state, doing)
                assert found in (state, changed), f"{where}: neither the old nor the new after {doing}"
                new_ones += found == changed != state
            assert doing is not None or found == state, f"{where}: not what was written"
            state = found
            nothing_is_locked(home)
            leftovers = left_behind(home)
            assert len(leftovers) == len({path.parent for path in leftovers}), f"{where}: {leftovers}"
    # Otherwise this has not tested what it says.
    assert under_way > KILLS // 2
    assert 0 < new_ones < under_way
    assert total > KILLS // 2

    last = Home(home, tmp_path / "scratch")
    for kind, do in (("app", "deploy"), ("secret", "replace"), ("token", "put"), ("artifact", "put")):
        await last.perform({"kind": kind, "do": do, "name": "one", "n": 1})
    await last.secrets.create_anonymous("f" * 64, "main", {"A": "1"})
    assert left_behind(home) == []
