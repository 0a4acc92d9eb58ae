"""Background loops that a long-running command can do without for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import UserError
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.wiring import lasting, shared
from modalnomad.wiring.shared import SharedDiscovery


async def test_whatever_it_ends_with_is_logged_and_it_begins_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lasting, "FIRST", 0.0)
    ends: list[Exception | None] = [RuntimeError("can't start new thread"), UserError("no such name"), None]
    well, deaths = asyncio.Event(), list[str]()

    async def run() -> None:
        if not ends:
            well.set()
            await asyncio.get_running_loop().create_future()
        if (end := ends.pop(0)) is not None:
            raise end

    async with asyncio.timeout(10), Tasks("test", lambda name, error: deaths.append(name)) as tasks:
        task = tasks.guard(lasting.lasting(run, "keys"), "keys")
        await well.wait()
    assert task.cancelled()
    assert deaths == []
    assert [record.getMessage() for record in caplog.records] == [
        "the background loop keys failed; again in 0 s",
        "the background loop keys failed, again in 0 s: no such name",
        "the background loop keys ended by itself; again in 0 s",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]


async def test_pauses_grow_while_it_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            raise asyncio.CancelledError

    async def run() -> None:
        if len(pauses) == 7:
            clock[0] += lasting.LONGEST  # it went well for long
        raise ValueError

    clock = [0.0]
    monkeypatch.setattr(lasting, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lasting, "sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        await lasting.lasting(run, "keys")
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 1, 2]


async def test_what_is_served_stays_served_whatever_the_records_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared, "PAUSE", 0.0)
    given: list[RouteSnapshot | Exception] = [
        RouteSnapshot(serials={("main", "a"): 1}),
        TypeError("nobody thought of that"),
        RouteSnapshot(serials={("main", "a"): 2}),
    ]

    class Odd:
        async def watch(self) -> AsyncIterator[RouteSnapshot]:
            while given:
                if isinstance(one := given.pop(0), Exception):
                    raise one
                yield one
            await asyncio.get_running_loop().create_future()

    discovery, deaths, failures = SharedDiscovery(cast(Discovery, Odd()), lambda _: None), list[str](), list[str]()
    discovery.on_failure = lambda: failures.append("routes")
    async with asyncio.timeout(10), Tasks("test", lambda name, error: deaths.append(name)) as tasks:
        tasks.guard(discovery.run(), "watch")
        async for snapshot in discovery.watch():
            if snapshot.serials["main", "a"] == 2:
                break
    assert (deaths, failures, snapshot.index) == ([], ["routes"], 2)
    assert "nobody thought of that" in caplog.text
