"""When a deployed Function runs by itself."""

from __future__ import annotations

import math
import re

from . import where
from .exception import InvalidError

_FIELD = re.compile(r"[0-9A-Za-z*,/#-]+")


class Schedule:
    """Base of Cron and Period."""


class Cron(Schedule):
    """Run at the times of a cron expression of five fields.

    Args:
        cron_string: minute, hour, day of month, month, day of week.
        timezone: name of the time zone the expression is meant in.
    """

    def __init__(self, cron_string: str, timezone: str = "UTC") -> None:
        if not isinstance(cron_string, str) or len(cron_string.split()) != 5:
            raise InvalidError(f'{where.caller()}: Cron({cron_string!r}): five fields are needed, as in "0 9 * * 1"')
        if wrong := next((field for field in cron_string.split() if not _FIELD.fullmatch(field)), None):
            raise InvalidError(
                f"{where.caller()}: Cron({cron_string!r}): {wrong!r} is no field: numbers, names of days and months, "
                "and * , - / are possible"
            )
        if not isinstance(timezone, str) or not timezone:
            raise InvalidError(
                f'{where.caller()}: Cron(timezone={timezone!r}): a name is needed, as in "Europe/Berlin"'
            )
        self.cron_string = cron_string
        self.timezone = timezone

    def __repr__(self) -> str:
        return f"Cron({self.cron_string!r}, timezone={self.timezone!r})"


class Period(Schedule):
    """Run again and again after a fixed time, counted from the deploy. Only seconds may be fractional."""

    def __init__(
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: float = 0,
    ) -> None:
        given = {"years": years, "months": months, "weeks": weeks, "days": days, "hours": hours, "minutes": minutes}
        for name, value in given.items():
            if not isinstance(value, int):
                raise InvalidError(f"{where.caller()}: Period({name}={value!r}): a whole number is needed")
        if not isinstance(seconds, (int, float)):
            raise InvalidError(f"{where.caller()}: Period(seconds={seconds!r}): a number is needed")
        times: dict[str, float] = {**given, "seconds": seconds}
        for name, time in times.items():
            if not 0 <= time < math.inf:
                raise InvalidError(f"{where.caller()}: Period({name}={time!r}): time goes forward, write 0 or more")
        if not any((*given.values(), seconds)):
            raise InvalidError(f"{where.caller()}: Period() of no time: give it days, hours, minutes or seconds")
        self.parts: dict[str, float] = {name: time for name, time in times.items() if time}

    def __repr__(self) -> str:
        return f"Period({', '.join(f'{name}={value}' for name, value in self.parts.items())})"
