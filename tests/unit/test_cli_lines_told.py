"""The last words of replicas are told before a command ends, unless nobody reads them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest

from modalnomad.cli import lines_told
from modalnomad.cli.lines_told import LinesTold
from modalnomad.cli.outlet import Outlet
from modalnomad.embedded.logs import Journal, Origin
from modalnomad.kit.tasks import Tasks
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import LogLine, PoolKey, ReplicaKey

KEY = ReplicaKey(PoolKey(RevisionId("r" * 32)), 0, 1)
LINES = 9000
"""More than go into a pipe and wait for it."""


class Engine:
    """A journal, as the engine port gives it out."""

    def __init__(self) -> None:
        self.journal = Journal(LINES)
        self.log = self.journal.open(Origin(KEY, "app", "f", "main"))

    def logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        return self.journal.read(key, follow=follow)


class View:
    """Standard output, as the commands tell lines there."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.full = asyncio.Event()

    async def room(self) -> None:
        if not self.outlet._room.is_set():
            self.full.set()
        await self.outlet.room()

    def log(self, line: LogLine, number: str) -> None:
        self.outlet.write(f"{line.text} {'x' * 100}\n")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


async def last_words(outlet: Outlet, while_full: Callable[[], object]) -> None:
    """A replica's, which are more than there is room for; then the end of a command."""
    engine, view = Engine(), View(outlet)
    lines = LinesTold(engine, view)  # type: ignore[arg-type]
    async with Tasks("test") as tasks:
        tasks.guard(lines.follow(), "logs")
        await asyncio.sleep(0)
        engine.log.write("stdout", [(None, str(number)) for number in range(LINES)])
        await view.full.wait()
        while_full()
        await lines.caught_up()


async def test_a_reader_who_is_slow_misses_none(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    read: list[str] = []

    def read_all() -> None:
        with open(reading, closefd=False) as stream:
            read.extend(line.split()[0] for line in stream)

    reader = threading.Thread(target=read_all)
    with Outlet(writing, lambda: None) as outlet:
        await last_words(outlet, reader.start)
    os.close(writing)
    reader.join()
    assert read == [str(number) for number in range(LINES)]


async def test_one_who_stands_still_is_not_waited_for_long(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_told, "WAIT", 0.001)
    reading, writing = pipe
    with Outlet(writing, lambda: None) as outlet:
        await last_words(outlet, lambda: None)
        os.close(reading)


async def test_a_replica_that_writes_on_and_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_told, "ROUNDS", 5)
    engine, told = Engine(), 0

    class Endless:
        async def room(self) -> None:
            await asyncio.sleep(0)

        def log(self, line: LogLine, number: str) -> None:
            nonlocal told
            told += 1
            engine.log.write("stdout", [(None, "more")])

    lines = LinesTold(engine, Endless())  # type: ignore[arg-type]
    async with Tasks("test") as tasks:
        tasks.guard(lines.follow(), "logs")
        engine.log.write("stdout", [(None, "first")])
        await lines.caught_up()
    assert told > 1
