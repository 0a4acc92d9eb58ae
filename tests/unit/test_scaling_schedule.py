"""When jobs run, with clocks that do what the test says: deploys, restarts, jumps of the clock, daylight saving."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Schedule
from modalnomad.scaling.schedule import BACK, LOOK, Job, JobKey, Memory, Timetable, fault

KEY: JobKey = ("main", "app", "f")
HOUR = 3600.0
START = datetime(2026, 3, 2, 11, 30, tzinfo=ZoneInfo("UTC")).timestamp()


def cron(expression: str, timezone: str = "UTC") -> Schedule:
    return Schedule(kind="cron", cron=expression, timezone=timezone)


def period(**parts: float) -> Schedule:
    return Schedule(kind="period", period=parts)


class World:
    """A timetable with its clocks. `runs` holds the wall times at which the job was started."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        now: float = START,
        memory: Mapping[JobKey, Memory] | None = None,
        deployed: Any = None,
    ) -> None:
        self.wall, self.steady = now, 50.0
        self.schedule = schedule
        self.runs: list[float] = []
        self.table = Timetable(memory or {})
        self.deploy(now if deployed is None else deployed)

    def deploy(self, at: float | None = None, schedule: Schedule | None = None) -> None:
        self.schedule = schedule or self.schedule
        job = Job(KEY, RevisionId("r"), self.schedule, self.wall if at is None else at)
        self.table.take({KEY: job}, self.wall, self.steady)

    def live(self, seconds: float) -> list[float]:
        """Let time pass, looking when the timetable wants to; the runs meanwhile, in seconds from the start."""
        before, end = len(self.runs), self.steady + seconds
        while True:
            starts, wait = self.table.tick(self.wall, self.steady)
            self.runs += [self.wall for _ in starts]
            step = min(max(wait, 0.001), end - self.steady)
            if step <= 0:
                return [run - START for run in self.runs[before:]]
            self.wall += step
            self.steady += step

    def jump(self, seconds: float) -> None:
        self.wall += seconds

    def restarted(self, after: float) -> World:
        """Another process, that many seconds later."""
        return World(
            self.schedule,
            now=self.wall + after,
            memory=self.table.remembered(),
            deployed=self.table._entries[KEY].job.deployed_at,
        )


def about(*seconds: float) -> Any:
    return pytest.approx(list(seconds), abs=0.01)


def test_a_cron_runs_at_its_times_and_not_before_the_first() -> None:
    world = World(cron("0,15 * * * *"))

    assert world.live(2 * HOUR) == about(1800, 2700, 5400, 6300)


def test_a_period_counts_from_the_deploy_and_begins_again_with_each() -> None:
    world = World(period(minutes=10))
    assert world.live(1500) == about(600, 1200)

    world.deploy()

    assert world.live(1000) == about(2100)


def test_a_cron_is_not_disturbed_by_deploys() -> None:
    world = World(cron("0 * * * *"))
    world.live(1790)
    world.deploy()

    assert world.live(20) == about(1800)
    world.deploy()
    assert world.live(HOUR - 20) == [], "not a second time"


def test_another_expression_holds_from_its_deploy() -> None:
    world = World(cron("0 * * * *"))
    world.deploy(schedule=cron("40 * * * *"))

    assert world.live(HOUR) == about(600)


def test_one_that_is_no_longer_served_does_not_run() -> None:
    world = World(period(minutes=1))
    world.table.take({}, world.wall, world.steady)

    assert world.live(300) == []
    assert world.table.tick(world.wall, world.steady) == ([], LOOK)


def test_a_restart_neither_repeats_nor_forgets_a_period() -> None:
    world = World(period(hours=1))
    world.live(HOUR + 600)

    soon = world.restarted(after=60)
    assert soon.live(HOUR) == about(2 * HOUR), "50 minutes were still to wait, one of them is over"

    late = world.restarted(after=5 * HOUR)
    first, second = late.live(HOUR + 1)
    assert first == pytest.approx(HOUR + 600 + 5 * HOUR, abs=1), "overdue: once, at once"
    assert second - first == pytest.approx(HOUR, abs=0.01)


def test_a_period_that_never_ran_is_remembered_too() -> None:
    world = World(period(hours=1))
    world.live(600)

    assert world.restarted(after=600).live(HOUR) == about(HOUR)


def test_cron_runs_that_were_missed_while_nothing_ran_are_not_made_up() -> None:
    world = World(cron("0 * * * *"))
    world.live(HOUR)

    assert world.restarted(after=5 * HOUR).live(HOUR - 1) == about(1800 + 6 * HOUR)


@pytest.mark.parametrize("jump", [7 * HOUR, -7 * HOUR, 90.0, -90.0])
def test_a_period_waits_as_long_as_it_had_to_when_the_clock_is_set(jump: float) -> None:
    world = World(period(hours=1))
    world.live(600)
    world.jump(jump)

    assert world.live(HOUR) == about(HOUR + jump)
    assert world.live(HOUR) == about(2 * HOUR + jump)


def test_a_deploy_right_after_a_jump_counts_from_there() -> None:
    world = World(period(hours=1))
    world.live(600)
    world.jump(10 * HOUR)
    world.deploy()

    assert world.live(HOUR + 1) == about(600 + 11 * HOUR)


def test_what_the_clock_jumped_over_is_skipped_by_a_cron() -> None:
    world = World(cron("0 * * * *"))
    world.live(60)
    world.jump(5 * HOUR)

    assert world.live(HOUR) == about(1800 + 5 * HOUR)
    assert world.table.skipped == 1


def test_a_clock_put_right_by_seconds_loses_no_run() -> None:
    world = World(cron("0 * * * *"))
    world.live(1795)
    world.jump(30)  # the run is late by half a minute

    assert len(world.live(10)) == 1


def test_a_clock_that_goes_back_a_little_repeats_no_cron_run() -> None:
    world = World(cron("0 * * * *"))
    assert world.live(1900) == about(1800)
    world.jump(-600)

    assert world.live(HOUR) == [], "the same full hour again"
    assert world.live(HOUR) == about(1800 + HOUR)


def test_a_clock_that_was_far_ahead_does_not_silence_a_cron() -> None:
    world = World(cron("0 * * * *"))
    world.live(1900)
    world.jump(-2 * BACK)

    assert len(world.live(HOUR)) == 1


def test_a_record_from_a_clock_far_ahead_neither_silences_nor_repeats_after_a_restart() -> None:
    future = {KEY: Memory(START, START + 400 * 86400)}

    assert len(World(cron("0 * * * *"), memory=future).live(HOUR)) == 1
    assert World(period(hours=1), memory=future).live(HOUR + 1) == about(HOUR)


def test_many_jumps_give_no_endless_runs() -> None:
    world = World(period(minutes=1))
    for _ in range(100):
        world.jump(-3000)
        world.live(1)
        world.jump(3000)
        world.live(1)

    assert len(world.runs) <= 4, "200 s are three periods"


@pytest.mark.parametrize(
    ("expression", "day", "count"),
    [
        ("30 2 * * *", (2026, 3, 29), 1),  # this hour does not exist: at the end of the gap
        ("30 2 * * *", (2026, 10, 25), 1),  # this hour comes twice
        ("0 * * * *", (2026, 3, 29), 23),
        ("0 * * * *", (2026, 10, 25), 25),
    ],
)
def test_days_on_which_clocks_change(expression: str, day: tuple[int, int, int], count: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime(*day, tzinfo=zone).timestamp() - 1
    end = datetime(*day[:2], day[2] + 1, tzinfo=zone).timestamp() - 1
    world = World(cron(expression, "Europe/Berlin"), now=begin)

    assert len(world.live(end - begin)) == count


def test_a_short_period_is_not_written_down_and_keeps_its_pace() -> None:
    world = World(period(seconds=1))

    assert world.live(5.5) == about(1, 2, 3, 4, 5)
    assert world.table.remembered() == {}


def test_a_process_that_stood_still_runs_a_period_once() -> None:
    world = World(period(seconds=10))
    world.wall += 95
    world.steady += 95

    assert world.live(10.5) == about(95, 105)


def test_months_go_by_the_calendar() -> None:
    start = datetime(2026, 1, 31, 12, tzinfo=ZoneInfo("UTC")).timestamp()
    world = World(period(months=1), now=start)

    assert world.table.due()[KEY] == datetime(2026, 2, 28, 12, tzinfo=ZoneInfo("UTC")).timestamp()


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (cron("61 * * * *"), "bad minute"),
        (cron("0 0 30 2 *"), "bad day-of-month"),
        (cron("* * * *"), "wrong number of fields"),
        (cron("0 9 * * *", "Mars/Olympus"), "'Mars/Olympus', which is not known"),
        (cron("0 9 * * *", "../etc/passwd"), "not known"),
        (period(), "0 s"),
        (period(seconds=0.2), "0.2 s"),
        (period(years=9000), "too long"),
        (period(years=8000), "too long"),
        (period(days=2_900_000), "too long"),
        (period(days=1, fortnights=1), "days, fortnights: not all of these are known here"),
    ],
)
def test_a_schedule_that_cannot_be_is_told(schedule: Schedule, words: str) -> None:
    assert words in (fault(schedule) or "")


def test_a_good_schedule_has_no_fault() -> None:
    assert fault(cron("*/5 8-17 * * MON-FRI", "Europe/Berlin")) is None
    assert fault(period(days=1, hours=0.5)) is None
    assert fault(period(years=100)) is None
