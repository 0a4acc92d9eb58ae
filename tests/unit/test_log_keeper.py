"""What replicas write goes to files, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded.log_reader import LogReader, Wanted
from modalnomad.embedded.log_segments import LogWriter, app_folder, encoded, segments
from modalnomad.embedded.logfiles import DAY, HELD_BYTES, WRITE_FROM, AppKey, LogFiles, LogKeeper
from modalnomad.embedded.logs import Journal, Origin, ReplicaLog
from modalnomad.kit.tasks import Tasks
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import LogLine, PoolKey, ReplicaKey
from modalnomad.settings import EmbeddedSettings

KEY = ReplicaKey(PoolKey(RevisionId("r" * 32)), 0, 1)


class Engine:
    """A journal, as the engine port gives it out."""

    def __init__(self) -> None:
        self.journal = Journal(1000)

    def logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        return self.journal.read(key, follow=follow)

    def replica(self, app: str = "app", environment: str = "main", number: int = 0) -> ReplicaLog:
        key = ReplicaKey(PoolKey(RevisionId("r" * 32)), number, 1)
        return self.journal.open(Origin(key, app, "f", environment))


@asynccontextmanager
async def keeping(engine: Engine, home: Path, **settings: Any) -> AsyncIterator[LogKeeper]:
    keeper = LogKeeper(engine, home, EmbeddedSettings(**settings))
    async with Tasks("test") as tasks:
        tasks.guard(keeper.run(), "logs")
        await asyncio.sleep(0)
        yield keeper


def write(log: ReplicaLog, *lines: str) -> None:
    log.write("stdout", [("req", line) for line in lines])


def texts(home: Path, app: str = "app", environment: str = "main") -> list[str]:
    with closing(LogReader(home, environment, app, Wanted())) as reader:
        return [line.text for line in reader.all()]


def line(text: str, time: float = 1.0) -> bytes:
    return encoded(LogLine(time, "app", "f", str(KEY), "stdout", text))


async def test_what_was_written_before_the_end_is_kept(tmp_path: Path) -> None:
    engine = Engine()
    async with keeping(engine, tmp_path):
        write(engine.replica(), *map(str, range(500)))
        write(engine.replica("other", "dev", 1), "elsewhere")

    assert texts(tmp_path) == [str(n) for n in range(500)]
    assert texts(tmp_path, "other", "dev") == ["elsewhere"]


async def test_last_words_that_a_slow_disk_has_no_room_for_yet_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, begun, go_on = Engine(), threading.Event(), threading.Event()
    write_files = LogFiles.write

    def slowly(self: LogFiles, batch: Mapping[AppKey, Sequence[bytes]]) -> None:
        begun.set()
        assert go_on.wait(20)
        write_files(self, batch)

    monkeypatch.setattr(LogFiles, "write", slowly)
    size = 10_000
    async with keeping(engine, tmp_path):
        log = engine.replica()
        write(log, "x" * WRITE_FROM)
        await asyncio.to_thread(begun.wait, 20)
        write(log, *["y" * size] * (HELD_BYTES // size + 100))
        asyncio.get_running_loop().call_later(0.1, go_on.set)

    assert len(texts(tmp_path)) == 1 + HELD_BYTES // size + 100


async def test_it_goes_on_where_the_one_before_ended(tmp_path: Path) -> None:
    for number in range(3):
        engine = Engine()
        async with keeping(engine, tmp_path):
            write(engine.replica(), str(number))

    assert texts(tmp_path) == ["0", "1", "2"]
    assert len(segments(app_folder(tmp_path, "main", "app"))) == 1


async def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    engine = Engine()
    async with keeping(engine, tmp_path):
        write(engine.replica(), "x")
    (segment,) = segments(app_folder(tmp_path, "main", "app"))

    assert segment.path.stat().st_mode & 0o777 == 0o600
    assert segment.path.parent.stat().st_mode & 0o777 == 0o700


async def test_none_are_written_where_the_settings_say_so(tmp_path: Path) -> None:
    engine = Engine()
    async with keeping(engine, tmp_path, log_bytes=0):
        write(engine.replica(), "x")

    assert not os.listdir(tmp_path)


def files(home: Path, **settings: Any) -> LogFiles:
    return LogFiles(home, EmbeddedSettings(**settings), clock=lambda: 100 * DAY)


def test_writers_are_not_kept_for_apps_that_are_long_gone(tmp_path: Path) -> None:
    kept = files(tmp_path)
    for number in range(3):
        kept.write({("main", f"app{number}"): [line("one")]})
        kept.tidy()
    assert not kept._writers


def test_a_disk_that_takes_nothing_is_told_once_and_what_was_lost_stands_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = files(tmp_path)
    kept.write({("main", "app"): [line("before")]})
    folder = app_folder(tmp_path, "main", "app")
    folder.rename(tmp_path / "aside")
    folder.write_text("in the way")
    for number in range(3):
        kept.write({("main", "app"): [line(f"{number} one"), line(f"{number} two")]})
        kept.write({("main", "other"): [line(f"{number} another App's")]})
    assert kept.lost == 6
    folder.unlink()
    (tmp_path / "aside").rename(folder)
    kept.write({("main", "app"): [line("after")]})

    missing = "6 lines are left out here: they could not be written to disk"
    assert texts(tmp_path) == ["before", missing, "after"]
    assert texts(tmp_path, "other") == [f"{number} another App's" for number in range(3)]
    levels = [record.levelno for record in caplog.records]
    assert levels.count(logging.ERROR) == 1
    assert "cannot write the logs" in caplog.records[0].message
    assert levels.count(logging.WARNING) == 1


def test_a_disk_that_fills_up_within_a_line_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = files(tmp_path)
    kept.write({("main", "app"): [line("before")]})
    real = os.write
    with monkeypatch.context() as patched:

        def full(descriptor: int, data: bytes) -> int:
            if len(data) < 20:
                raise OSError(errno.ENOSPC, "full")
            return real(descriptor, data[:10])

        patched.setattr("modalnomad.embedded.log_segments.os.write", full)
        kept.write({("main", "app"): [line("lost " * 100)]})
    (segment,) = segments(app_folder(tmp_path, "main", "app"))
    assert segment.path.read_bytes() == line("before")
    kept.write({("main", "app"): [line("after")]})

    assert texts(tmp_path)[::2] == ["before", "after"]


def test_the_oldest_go_when_an_apps_limit_is_reached(tmp_path: Path) -> None:
    writer = LogWriter(app_folder(tmp_path, "main", "app"), 50_000)
    for begin in range(0, 2000, 20):
        writer.append([line(f"{number:04d} " + "x" * 100) for number in range(begin, begin + 20)])
    found = texts(tmp_path)
    size = sum(segment.path.stat().st_size for segment in segments(app_folder(tmp_path, "main", "app")))

    assert 40_000 < size <= 50_000
    assert found[-1][:4] == "1999"
    assert [int(text[:4]) for text in found] == list(range(2000 - len(found), 2000))


def test_what_is_too_old_goes_with_its_folder(tmp_path: Path) -> None:
    kept = files(tmp_path, log_days=14)
    kept.write({("main", "old"): [line("old")], ("main", "new"): [line("new")]})
    for app, day in (("old", 85), ("new", 87)):
        (segment,) = segments(app_folder(tmp_path, "main", app))
        os.utime(segment.path, (day * DAY, day * DAY))
    kept.tidy()

    assert not app_folder(tmp_path, "main", "old").exists()
    assert texts(tmp_path, "new") == ["new"]
    kept.write({("main", "old"): [line("again")]})
    assert texts(tmp_path, "old") == ["again"]


def test_nothing_is_too_old_without_a_limit(tmp_path: Path) -> None:
    kept = files(tmp_path, log_days=0)
    kept.write({("main", "app"): [line("old")]})
    (segment,) = segments(app_folder(tmp_path, "main", "app"))
    os.utime(segment.path, (0, 0))
    kept.tidy()

    assert texts(tmp_path) == ["old"]


async def test_a_disk_that_hangs_holds_up_neither_the_replicas_nor_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, stuck = Engine(), asyncio.Event()
    loop = asyncio.get_running_loop()
    hanging = loop.create_future()

    def hang(self: LogFiles, batch: Any) -> None:
        loop.call_soon_threadsafe(stuck.set)
        asyncio.run_coroutine_threadsafe(_wait(hanging), loop).result()

    with monkeypatch.context() as patched:
        patched.setattr(LogFiles, "write", hang)
        patched.setattr("modalnomad.embedded.logfiles.WRITE_EVERY", 0.0)
        async with keeping(engine, tmp_path) as keeper:
            log = engine.replica()
            write(log, "first")
            await stuck.wait()
            for _ in range(1000):
                write(log, *(["x" * 1000] * 20))
                await asyncio.sleep(0)
            held = keeper._held
            hanging.set_result(None)

    assert 0 < held < 4 * 1024 * 1024


async def _wait(future: asyncio.Future[None]) -> None:
    await future


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), "abcd"),
        (Wanted(since=2.0), "bcd"),
        (Wanted(until=2.0), "ab"),
        (Wanted(since=2.0, until=3.0), "bc"),
        (Wanted(function="g"), "b"),
        (Wanted(replica="0.1"), "ac"),
        (Wanted(replica="10.1"), "b"),
        (Wanted(replica="p.0.1"), "ac"),
        (Wanted(replica="1"), "abc"),
        (Wanted(request_id='q"1'), "c"),
        (Wanted(search="c"), "c"),
        (Wanted(search='"'), ""),
        (Wanted(sources=frozenset({"stderr", "system"})), "cd"),
        (Wanted(function="f", sources=frozenset({"stdout"})), "a"),
    ],
)
def test_only_the_wanted_lines(tmp_path: Path, wanted: Wanted, expected: str) -> None:
    lines = [
        LogLine(1.0, "app", "f", "p.0.1", "stdout", "a"),
        LogLine(2.0, "app", "g", "p.10.1", "stdout", "b"),
        LogLine(3.0, "app", "f", "p.0.1", "stderr", "c", 'q"1'),
        LogLine(4.0, "app", "f", "p.1.2", "system", "d"),
    ]
    LogWriter(app_folder(tmp_path, "main", "app"), 10**6).append([encoded(line) for line in lines])
    with closing(LogReader(tmp_path, "main", "app", wanted)) as reader:
        assert "".join(line.text for line in reader.all()) == expected
        assert "".join(line.text for line in reader.last(100)) == expected
        assert "".join(line.text for line in reader.last(1)) == expected[-1:]
        assert list(reader.last(0)) == []


def test_a_damaged_line_hides_no_other(tmp_path: Path) -> None:
    writer = LogWriter(app_folder(tmp_path, "main", "app"), 10**6)
    damaged = [b"{half\n", b"[]\n", b'{"time":"x","function":1}\n', b"\xff\xfe\n", b"\n"]
    writer.append([line("a"), *damaged, line("b")])

    assert texts(tmp_path) == ["a", "b"]
    with closing(LogReader(tmp_path, "main", "app", Wanted(since=0.5))) as reader:
        assert [found.text for found in reader.all()] == ["a", "b"]


def test_a_follower_goes_on_when_all_was_removed(tmp_path: Path) -> None:
    folder = app_folder(tmp_path, "main", "app")
    writer = LogWriter(folder, 10**6)
    writer.append([line("a")])
    with closing(LogReader(tmp_path, "main", "app", Wanted())) as reader:
        writer.append([line("b")])
        for segment in segments(folder):
            segment.path.unlink()
        writer.append([line("c")])

        assert [found.text for found in reader.more()] == ["b", "c"]


def test_a_follower_that_is_overtaken_says_so(tmp_path: Path) -> None:
    folder = app_folder(tmp_path, "main", "app")
    writer = LogWriter(folder, 40_000)
    writer.append([line("a")])
    with closing(LogReader(tmp_path, "main", "app", Wanted())) as reader:
        writer.append([line("x" * 900) for _ in range(100)])
        writer.append([line("z")])
        found = list(reader.more())

    assert [found.text for found in found if found.stream == "system"] == [
        "some lines are left out here: they were removed before they were read"
    ]
    assert found[-1].text == "z"
