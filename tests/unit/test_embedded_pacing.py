"""How fast floods are read."""

from __future__ import annotations

import pytest

from modalnomad.embedded.pacing import BURST, FLOODING_FOR, LINE_COST, RATE, WORK_FREE, WORK_SHARE, Pace, Paces
from tests.support.clock import ManualClock

CHUNK = b"x" * 16_383 + b"\n"


def flood(clock: ManualClock, seconds: float, *paces: Pace) -> int:
    """Bytes read of replicas that write as fast as they are read, in so many seconds."""
    end, taken = clock() + seconds, 0
    due = [clock() for _ in paces]
    while (soonest := min(due)) < end:
        clock.advance(max(0.0, soonest - clock()))
        index = due.index(soonest)
        due[index] = clock() + paces[index].pause(CHUNK, clock())
        taken += len(CHUNK) + LINE_COST
    return taken


def test_a_burst_is_read_at_once() -> None:
    clock = ManualClock()
    pace = Pace(Paces(clock))

    assert {pace.pause(CHUNK, clock()) for _ in range(BURST // (len(CHUNK) + LINE_COST))} == {0.0}
    assert pace.pause(CHUNK, clock()) > 0


def test_a_flood_is_read_at_the_rate() -> None:
    clock = ManualClock()
    pace = Pace(Paces(clock))
    flood(clock, 0.1, pace)

    assert abs(flood(clock, 10.0, pace) / 10.0 - RATE) < 0.01 * RATE


def test_many_floods_share_the_rate_and_the_others_have_their_own() -> None:
    clock = ManualClock()
    paces = Paces(clock)
    one, other, quiet = Pace(paces), Pace(paces), Pace(paces)
    flood(clock, 0.1, one, other)

    assert abs(flood(clock, 10.0, one, other) / 10.0 - RATE) < 0.05 * RATE
    assert paces.flooding(clock()) == 2
    assert quiet.pause(CHUNK, clock()) == 0


def test_short_lines_cost_more_than_their_bytes() -> None:
    clock = ManualClock()
    pace = Pace(Paces(clock))
    lines = BURST // (LINE_COST + 1) + 1

    assert pace.pause(b"\n" * lines, clock()) > 0


def test_work_that_takes_long_is_followed_by_a_pause() -> None:
    clock = ManualClock()
    pace = Pace(Paces(clock))
    began = clock()
    clock.advance(10 * WORK_FREE)

    assert pace.pause(b"x", began) == pytest.approx(10 * WORK_FREE * WORK_SHARE)
    assert pace.pause(b"x", clock()) == 0


def test_who_has_stopped_flooding_takes_no_share() -> None:
    clock = ManualClock()
    paces = Paces(clock)
    one, other = Pace(paces), Pace(paces)
    flood(clock, 0.1, one, other)
    one.end()
    assert paces.flooding(clock()) == 1

    clock.advance(BURST / RATE + FLOODING_FOR)
    flood(clock, 0.1, one)
    assert paces.flooding(clock()) == 1
