"""The watcher on real files: what counts as a change, and what happens while the set of files is replaced."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from modalnomad.deploy.watching import Stamp, Watcher, look, to_watch
from tests.support.runner import LONG


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[Watcher]:
    watcher = Watcher([str(path) for path in paths])
    try:
        yield watcher
    finally:
        await watcher.close()


async def next_change(watcher: Watcher) -> set[str]:
    async with asyncio.timeout(LONG):
        return {os.path.basename(path) for path in await watcher.changed()}


async def test_a_write_and_a_replacement_are_changes(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text("one")
    async with watching(file) as watcher:
        file.write_text("two two")
        assert await next_change(watcher) == {"app.py"}

        # As editors save: a new file renamed over the old one.
        (tmp_path / ".app.py.new").write_text("three three three")
        (tmp_path / ".app.py.new").rename(file)
        assert await next_change(watcher) == {"app.py"}

        file.unlink()
        assert await next_change(watcher) == {"app.py"}


async def test_a_notice_ends_the_wait_for_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalnomad.deploy.watching.LOOK_EVERY", 3600.0)
    file = tmp_path / "app.py"
    file.write_text("one")
    async with asyncio.timeout(LONG), watching(file) as watcher:
        for _ in range(5):
            waiting = asyncio.ensure_future(watcher.changed())
            # At first it has time for a look that sees nothing. Again and again: the listener starts on a thread of its
            # own, which nobody can wait for.
            while not (await asyncio.wait({waiting}, timeout=0.05))[0]:
                file.write_text(file.read_text() + "more")
            assert await waiting == {str(file)}


async def test_neighbours_do_not_count_unless_the_program_is_broken(tmp_path: Path) -> None:
    file, neighbour = tmp_path / "app.py", tmp_path / "helper.py"
    file.write_text("one")
    async with watching(file) as watcher:
        neighbour.write_text("x")
        file.write_text("two two")
        assert await next_change(watcher) == {"app.py"}

        watcher.widen(True)
        neighbour.write_text("longer")
        assert await next_change(watcher) == {"helper.py"}
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "third.py").write_text("x")
        assert await next_change(watcher) == {"third.py"}

        watcher.widen(False)
        neighbour.write_text("longer still")
        file.write_text("one")
        assert await next_change(watcher) == {"app.py"}


async def test_a_folder_is_watched_with_all_below_but_caches(tmp_path: Path) -> None:
    (tmp_path / "package" / "deep").mkdir(parents=True)
    async with watching(tmp_path / "package") as watcher:
        (tmp_path / "package" / "__pycache__").mkdir()
        (tmp_path / "package" / "__pycache__" / "x.pyc").write_text("x")
        (tmp_path / "package" / "deep" / "new.txt").write_text("x")
        assert await next_change(watcher) == {"new.txt"}


async def test_a_change_made_while_the_set_is_replaced_is_seen(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "one.py", tmp_path / "b" / "two.py"]
    for file in files:
        file.parent.mkdir()
        file.write_text("x")
    async with watching(files[0]) as watcher:
        files[0].write_text("longer")
        watcher.replace([str(file) for file in files])
        assert await next_change(watcher) == {"one.py"}

        files[1].write_text("longer")
        assert await next_change(watcher) == {"two.py"}

        watcher.replace([str(files[1])])
        files[0].write_text("longer still")
        files[1].write_text("longer still")
        assert await next_change(watcher) == {"two.py"}


async def test_a_set_that_is_replaced_in_the_middle_of_a_look_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "a" / "one.py", tmp_path / "b" / "two.py", tmp_path / "b" / "three.py"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    loop, done = asyncio.get_running_loop(), threading.Event()

    def replace() -> None:
        watcher.replace([str(file) for file in files[:2]])
        watcher.widen(True)
        done.set()

    def look_slowly(paths: Iterable[str], *, wide: bool) -> dict[str, Stamp]:
        found = look(paths, wide=wide)
        if threading.current_thread() is not threading.main_thread() and not done.is_set():
            loop.call_soon_threadsafe(replace)
            done.wait(LONG)
        return found

    async with watching(files[0]) as watcher:
        monkeypatch.setattr("modalnomad.deploy.watching.look", look_slowly)
        waiting = asyncio.ensure_future(next_change(watcher))
        await asyncio.to_thread(done.wait, LONG)
        files[0].write_text("longer")
        assert await waiting == {"one.py"}


async def test_what_was_written_since_it_was_read_is_a_change(tmp_path: Path) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    begun = time.time()
    old.write_text("x")
    os.utime(old, (begun - 5, begun - 5))
    new.write_text("x")
    watcher = Watcher([str(old), str(new)], since=begun)
    try:
        assert await next_change(watcher) == {"new.py"}
        third = tmp_path / "third.py"
        third.write_text("x")
        watcher.replace([str(old), str(new), str(third)], since=begun)
        assert await next_change(watcher) == {"third.py"}
    finally:
        await watcher.close()


def test_files_are_listened_to_by_their_folders(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    alone, deep = to_watch([str(tmp_path / "app.py"), str(tmp_path / "folder")])

    assert alone == {str(tmp_path)}
    assert deep == {str(tmp_path / "folder")}
    assert look([str(tmp_path / "missing")], wide=True) == {}
