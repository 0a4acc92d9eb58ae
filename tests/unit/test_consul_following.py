"""Which answers of Consul's are believed."""

from __future__ import annotations

from contextlib import aclosing
from types import SimpleNamespace

import pytest

from modalnomad.hashicorp.consul import following
from modalnomad.hashicorp.consul.api import Found
from modalnomad.hashicorp.consul.following import BACKOFF_MAX, Follower, Verdict, judge, pause_after
from tests.support.clock import ManualClock


def nothing(index: int, *, filtered: bool = False) -> Found[str]:
    """An answer with nothing in it."""
    return Found((), index, filtered)


KNOWN = Found(("a", "b"), 50)


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        (Found(("a", "b", "c"), 51), Verdict.TAKE),
        (Found(("a",), 51), Verdict.TAKE),
        (Found(("a", "b"), 50), Verdict.TAKE),
        (Found(("a", "b"), 40), Verdict.TAKE),
        (Found(("a",), 40), Verdict.DOUBT),
        (nothing(40), Verdict.DOUBT),
        (nothing(50), Verdict.DOUBT),
        (nothing(51), Verdict.CONFIRM),
        (Found(("a",), 60, filtered=True), Verdict.DOUBT),
        (nothing(60, filtered=True), Verdict.DOUBT),
    ],
)
def test_an_answer_follows_what_is_known_or_is_doubted(new: Found[str], verdict: Verdict) -> None:
    found, reason = judge(KNOWN, new)

    assert found is verdict
    assert bool(reason) is (verdict is not Verdict.TAKE)


@pytest.mark.parametrize("new", [Found(("a",), 5), nothing(1)])
def test_the_first_answer_is_taken(new: Found[str]) -> None:
    assert judge(None, new) == (Verdict.TAKE, "")


def test_a_first_answer_that_is_not_all_is_doubted() -> None:
    assert judge(None, nothing(5, filtered=True))[0] is Verdict.DOUBT


def test_nothing_may_follow_nothing_at_any_index() -> None:
    assert judge(nothing(50), nothing(3))[0] is Verdict.TAKE


def test_pauses_grow_to_a_bound_and_are_drawn_from_all_of_it() -> None:
    assert all(0 <= pause_after(1) <= 0.25 for _ in range(50))
    late = [pause_after(1000) for _ in range(200)]

    assert max(late) <= BACKOFF_MAX
    assert min(late) < BACKOFF_MAX / 2 < max(late)


async def test_everything_is_read_anew_after_a_while_whatever_the_watch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents may answer what waits from what they keep themselves."""
    clock = ManualClock()
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(following, "PACE", 0.0)
    kept, true = Found(("a",), 5), Found(("b",), 6)
    asked: list[int] = []

    async def ask(*, index: int, wait: float, consistent: bool) -> Found[str]:
        asked.append(index)
        assert len(asked) < 10
        clock.advance(25.0)
        return kept if index or len(asked) == 1 else true

    async with aclosing(Follower("x", ask, reconcile=60.0).answers()) as answers:  # type: ignore[type-var]
        async for found in answers:
            if found == true:
                break
    assert asked == [0, 5, 5, 0]
