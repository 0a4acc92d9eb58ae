"""When Functions with a schedule run. Pure: time is an argument, Unix seconds (`wall`) and a clock that never jumps
(`steady`, which goes on while the machine sleeps).

    Cron     at the times of its expression in its time zone, whatever is deployed meanwhile
    Period   first one period after the deploy, then one period after each run; every deploy starts it again

Runs that were missed while nobody looked are not made up, but that a Period which is overdue runs once, at once. When
the clock is set, a Period keeps the time it still had to wait, and a Cron goes by the new time: what was jumped over is
skipped, what comes a second time within BACK is not run again.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Schedule

LATE: Final = 60.0
"""Seconds after its time that a Cron run is still started: the process was busy, or the clock was put right."""
BACK: Final = 3 * 3600.0
"""Seconds the clock may go back without a Cron run being repeated; past that the old times count for nothing."""
JUMP: Final = 1.0
"""Seconds by which the two clocks may drift apart between two looks."""
LOOK: Final = 10.0
"""Seconds between two looks at most: so late a jump of the clock is noticed."""
SHORTEST: Final = 1.0
"""Seconds of the shortest Period."""
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
"""A Period that begins up to then has to end before the calendar does (year 9999)."""
KEPT: Final = 60.0
"""Seconds: the last run of a shorter Period is not remembered past a restart."""

JobKey = tuple[str, str, str]
"""(environment, App, function tag)."""


def fault(schedule: Schedule) -> str | None:
    """What is wrong with it: the end of a sentence that begins with the Function's name."""
    if schedule.kind == "period":
        try:
            seconds = _after(schedule.period, 0.0)
            _after(schedule.period, LATEST)
        except (OverflowError, ValueError):
            return "has a Period that is too long"
        except TypeError:
            return f"has a Period of {', '.join(sorted(schedule.period))}: not all of these are known here"
        return None if seconds >= SHORTEST else f"has a Period of {seconds:g} s: {SHORTEST:g} s is the shortest"
    try:
        zone = ZoneInfo(schedule.timezone)
    except (ValueError, OSError, LookupError):
        return f"has the timezone {schedule.timezone!r}, which is not known here: write one such as Europe/Berlin"
    try:
        next(CronSim(str(schedule.cron), datetime(2025, 1, 1, tzinfo=zone)))
    except CronSimError as error:
        return f"has the cron expression {schedule.cron!r}, which is wrong: {str(error).lower()}"
    except StopIteration:
        return f"has the cron expression {schedule.cron!r}, which never comes to pass"
    return None


def next_cron(schedule: Schedule, after: float) -> float:
    """The first time of a Cron past `after`."""
    zone = ZoneInfo(schedule.timezone)
    return next(CronSim(str(schedule.cron), datetime.fromtimestamp(after, zone))).timestamp()


def _after(period: Mapping[str, float], start: float) -> float:
    """One period later; months and years by the calendar, in UTC."""
    parts = dict(period)
    months = int(parts.pop("years", 0)) * 12 + int(parts.pop("months", 0))
    moment = datetime.fromtimestamp(start, UTC)
    if months:
        year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        moment = moment.replace(year=year, month=month + 1, day=day)
    return (moment + timedelta(**parts)).timestamp()


@dataclass(frozen=True, slots=True)
class Job:
    """A Function that is served with a schedule."""

    key: JobKey
    revision: RevisionId
    schedule: Schedule
    deployed_at: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives a restart. `last`: the time of the last run, or what the next one is counted from."""

    deployed_at: float
    last: float


@dataclass(slots=True)
class _Entry:
    job: Job
    last: float | None
    """Time of the last run (Cron), start of the present period (Period)."""
    due: float = 0.0

    def plan(self, wall: float) -> None:
        """The next run, seen from now."""
        schedule = self.job.schedule
        if schedule.kind == "cron":
            repeated = self.last is not None and wall < self.last <= wall + BACK
            self.due = next_cron(schedule, self.last if repeated and self.last is not None else wall)
            return
        start = min(self.job.deployed_at if self.last is None else self.last, wall)
        self.last = start
        self.due = _after(schedule.period, start)


@dataclass(slots=True)
class Timetable:
    """All jobs with the times of their next runs."""

    memory: Mapping[JobKey, Memory] = field(default_factory=dict)
    """What was remembered before the start; used once for each job."""
    skipped: int = 0
    """Cron runs whose time had passed unnoticed."""
    _entries: dict[JobKey, _Entry] = field(default_factory=dict)
    _clocks: tuple[float, float] | None = None

    def take(self, jobs: Mapping[JobKey, Job], wall: float, steady: float) -> None:
        """These are all that there are now."""
        self._notice_jump(wall, steady)
        for key in self._entries.keys() - jobs.keys():
            del self._entries[key]
        for key, job in jobs.items():
            entry = self._entries.get(key)
            if entry is None:
                known = self.memory.get(key)
                kept = known is not None and (job.schedule.kind == "cron" or known.deployed_at == job.deployed_at)
                self._entries[key] = entry = _Entry(job, known.last if known is not None and kept else None)
                entry.plan(wall)
                continue
            old, entry.job = entry.job, job
            if job.schedule.kind == "period" and job.deployed_at != old.deployed_at:
                entry.last = None
            if job.schedule != old.schedule or (job.schedule.kind == "period" and entry.last is None):
                entry.plan(wall)
        self.memory = {}

    def tick(self, wall: float, steady: float) -> tuple[list[Job], float]:
        """Jobs to start now, and the seconds until the next look."""
        self._notice_jump(wall, steady)
        starts = []
        for entry in self._entries.values():
            if wall < entry.due:
                continue
            late = wall - entry.due
            if entry.job.schedule.kind == "period":
                starts.append(entry.job)
                # In step with the clock; not when whole periods have passed.
                entry.last = entry.due if _after(entry.job.schedule.period, entry.due) > wall else wall
            elif late <= LATE:
                starts.append(entry.job)
                entry.last = entry.due
            else:
                self.skipped += 1
            entry.plan(wall)
        soonest = min((entry.due for entry in self._entries.values()), default=wall + LOOK)
        return starts, min(max(soonest - wall, 0.0), LOOK)

    def _notice_jump(self, wall: float, steady: float) -> None:
        last, self._clocks = self._clocks, (wall, steady)
        if last is None:
            return
        jump = (wall - last[0]) - (steady - last[1])
        if abs(jump) <= JUMP:
            return
        for entry in self._entries.values():
            if entry.job.schedule.kind == "period":
                if entry.last is not None:
                    entry.last += jump
                entry.due += jump
            elif jump < 0:
                entry.plan(wall)

    def due(self) -> dict[JobKey, float]:
        """Unix time of each job's next run."""
        return {key: entry.due for key, entry in self._entries.items()}

    def remembered(self) -> dict[JobKey, Memory]:
        """What is to outlive a restart."""
        found = {}
        for key, entry in self._entries.items():
            short = entry.job.schedule.kind == "period" and _after(entry.job.schedule.period, 0.0) < KEPT
            if entry.last is not None and not short:
                found[key] = Memory(entry.job.deployed_at, entry.last)
        return found


def memories_to_json(memory: Mapping[JobKey, Memory]) -> list[dict[str, str | float]]:
    """As they are kept."""
    return [
        {
            "environment": environment,
            "app": app,
            "function": function,
            "deployed_at": kept.deployed_at,
            "last": kept.last,
        }
        for (environment, app, function), kept in sorted(memory.items())
    ]


def memories_from_json(jobs: Iterable[Mapping[str, Any]]) -> dict[JobKey, Memory]:
    """Raises KeyError, TypeError, ValueError for what was not written so."""
    found = {}
    for job in jobs:
        memory = Memory(float(job["deployed_at"]), float(job["last"]))
        if not abs(memory.last) <= LATEST:
            raise ValueError(f"{memory.last} is no time of a run")
        found[str(job["environment"]), str(job["app"]), str(job["function"])] = memory
    return found
