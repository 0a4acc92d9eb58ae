"""The scheduler's loop, with calls and records of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded.schedules import ScheduleRecords
from modalnomad.kit.watch import Cell
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Endpoint, Function, Schedule, Source
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import RouteSnapshot
from modalnomad.router.calls import Call, Outcome
from modalnomad.scaling.schedule import Memory
from modalnomad.wiring.scheduler import AT_ONCE, Scheduler
from tests.support.clock import ManualClock

HOURLY = Schedule(kind="period", period={"hours": 1})
KEY = ("main", "app", "f")


def revision(version: str = "1", tag: str = "f", **fields: Any) -> Revision:
    return Revision.make(
        app="app",
        environment="main",
        function=Function(tag=tag, **{"schedule": HOURLY, **fields}),
        source=Source(mode="script", entry="app.py", root="/x", module="app"),
        bundle=Digest(version * 64),
        image=BuiltImage(digest=Digest("i" * 64), python="3.11"),
    )


def snapshot(*revisions: Revision, deployed_at: float = 1000.0) -> RouteSnapshot:
    return RouteSnapshot(
        revisions={one.id: one for one in revisions}, deployed_at={one.id: deployed_at for one in revisions}
    )


class World:
    """Discovery, caller and clocks at once."""

    def __init__(self, home: Path) -> None:
        self.snapshots = Cell(snapshot(revision()))
        self.clock = ManualClock(1000.0)
        self.records = ScheduleRecords(home)
        self.calls: list[Call] = []
        self.outcome: Callable[[Call], Outcome] = lambda call: Outcome("result", b"")
        self.open = asyncio.Event()
        self.open.set()
        self.scheduler = Scheduler(
            self,  # type: ignore[arg-type]
            self,
            self.records,
            wall=self.clock,
            steady=self.clock,
        )

    def watch(self) -> AsyncIterator[RouteSnapshot]:
        return self.snapshots.watch()

    async def call(self, call: Call, on_retry: Callable[[Outcome, float], None] | None = None) -> Outcome:
        self.calls.append(call)
        await self.open.wait()
        return self.outcome(call)

    async def look(self, seconds: float = 0.0) -> None:
        """That much later, a look at the timetable, and what follows from it."""
        self.clock.advance(seconds)
        scheduler = self.scheduler
        scheduler._changed.set()
        async with asyncio.timeout(30):
            while scheduler._changed.is_set() or scheduler._saved != scheduler._timetable.remembered():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    task = asyncio.ensure_future(world.scheduler.run())
    try:
        await world.look()
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_what_is_due_is_called_without_arguments(world: World) -> None:
    async with running(world):
        await world.look(3599)
        assert world.calls == []
        await world.look(1)
        (call,) = world.calls
        assert (call.revision.id, call.payload, call.method, call.tell) == (revision().id, b"", "", True)
        assert world.scheduler.due == {KEY: 1000.0 + 7200}
        assert await world.records.load() == {KEY: Memory(1000.0, 4600.0)}
        assert world.scheduler.outcomes == {"result": 1}


async def test_a_restart_remembers(world: World, tmp_path: Path) -> None:
    async with running(world):
        await world.look(3600)
    again = World(tmp_path)
    again.clock.now = 1000.0 + 5400
    async with running(again):
        assert again.calls == []
        await again.look(1800)
        assert len(again.calls) == 1


async def test_what_another_one_ran_meanwhile_is_not_run_again(world: World) -> None:
    """One of several routers that leads, another one that does, and the first one again."""
    async with running(world):
        await world.look(3600)
    world.clock.advance(3600)
    await world.records.save({KEY: Memory(1000.0, world.clock.now)})
    async with running(world):
        await world.look(1800)
        assert len(world.calls) == 1
        assert await world.records.load() == {KEY: Memory(1000.0, 1000.0 + 7200)}
        await world.look(1800)
        assert len(world.calls) == 2


@pytest.mark.parametrize("last", ["{", "1e300", "Infinity"])
async def test_records_that_cannot_be_read_are_said_and_passed_over(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, last: str
) -> None:
    await world.records.save({KEY: Memory(1000.0, -1.5)})
    file = tmp_path / "schedules.json"
    file.write_text(file.read_text().replace("-1.5", f"-{last}"))
    async with running(world):
        await world.look(3600)
        assert len(world.calls) == 1
    assert "schedules.json cannot be used" in caplog.text


async def test_a_failed_run_is_logged_and_counted_and_the_next_one_runs(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.outcome = lambda call: Outcome("raised", Outcome.failure("ValueError", "no").body)
    async with running(world):
        await world.look(3600)
        await world.look(3600)
    assert world.scheduler.outcomes == {"raised": 2}
    assert "app/f, run by its schedule, failed: ValueError: no" in caplog.text


async def test_a_run_that_goes_on_does_not_hold_up_the_next_within_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.open.clear()
    async with running(world):
        for _ in range(AT_ONCE + 2):
            await world.look(3600)
        assert len(world.calls) == AT_ONCE
        assert world.scheduler.outcomes == {"left_out": 2}
        world.open.set()
        await world.look(3600)
        assert world.scheduler.outcomes == {"left_out": 2, "result": AT_ONCE + 1}
    assert "this one is left out" in caplog.text


async def test_a_deploy_that_comes_between_gives_the_run_to_the_new_version(world: World) -> None:
    world.open.clear()
    async with running(world):
        await world.look(3600)
        world.snapshots.set(snapshot(revision("2"), deployed_at=4600.0))
        world.outcome = lambda call: (
            Outcome("result", b"")
            if call.revision.id == revision("2").id
            else Outcome.failure("unknown_endpoint", "no longer served")
        )
        world.open.set()
        await world.look()
        assert [call.revision.id for call in world.calls] == [revision().id, revision("2").id]
        assert world.scheduler.outcomes == {"result": 1}


async def test_what_is_stopped_does_not_run_and_other_functions_are_none_of_its_business(world: World) -> None:
    web = revision("3", endpoints=(Endpoint(name="f", kind="asgi_app"),))
    for shown in (snapshot(), snapshot(revision("4", schedule=None)), snapshot(web)):
        world.snapshots.set(shown)
        async with running(world):
            await world.look(7200)
        assert world.calls == []


async def test_a_timezone_that_is_not_known_here_stops_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Schedule(kind="cron", cron="* * * * *", timezone="Mars/Olympus")
    other = Revision.model_validate({**revision("5", tag="g", schedule=lost).model_dump(), "id": RevisionId("5" * 32)})
    world.snapshots.set(snapshot(revision(), other))
    async with running(world):
        await world.look(3600)
        assert len(world.calls) == 1
    assert "app/g is not run: it has the timezone 'Mars/Olympus'" in caplog.text


async def test_what_runs_is_cancelled_at_the_end(world: World) -> None:
    world.open.clear()
    async with running(world):
        await world.look(3600)
        assert world.scheduler._tasks.running == 1
    assert world.scheduler._tasks.running == 0
