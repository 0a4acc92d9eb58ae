"""Why a request got no place → what its sender is told (design §5)."""

from __future__ import annotations

import pytest

from modalnomad.model.replica import Failure, FailureCode
from modalnomad.router.headers import Origin, Passage
from modalnomad.router.outcomes import reply_for
from modalnomad.router.places import Deny
from tests.support.router import route

_, REVISION = route()


@pytest.mark.parametrize(
    ("code", "open_for", "status", "told", "retry_after"),
    [
        ("start_failed", None, 503, "start_failed", None),
        ("start_failed", 4.0, 503, "start_failed", 4.0),
        ("replica_gone", None, 503, "start_failed", None),
        ("startup_timeout", None, 504, "startup_timeout", None),
        ("startup_timeout", 4.0, 503, "start_failed", 4.0),
        ("no_capacity", None, 503, "no_capacity", 1.0),
        ("no_capacity", 4.0, 503, "no_capacity", 4.0),
        ("unplaceable", None, 503, "unplaceable", None),
        ("unplaceable", 4.0, 503, "unplaceable", 4.0),
    ],
)
def test_failed_starts(
    code: FailureCode, open_for: float | None, status: int, told: str, retry_after: float | None
) -> None:
    failure = Failure(code, "exit code 70", "Traceback: boom", 70)
    answer = reply_for(Deny(1, "failed" if open_for is None else "broken", failure, open_for), REVISION).answer
    assert (answer.status, answer.code, answer.retry_after) == (status, told, retry_after)
    assert "boom" in answer.private
    assert "boom" not in answer.detail


def test_full_late_and_draining() -> None:
    told = {why: reply_for(Deny(1, why, retry_after=2.0), REVISION).answer for why in ("queue_full", "queue_timeout")}
    assert (told["queue_full"].status, told["queue_full"].retry_after) == (429, 2.0)
    assert (told["queue_timeout"].status, told["queue_timeout"].code) == (503, "queue_timeout")
    draining = reply_for(Deny(1, "draining"), REVISION).answer
    assert (draining.status, draining.code, draining.close) == (503, "draining", True)


def test_the_ticket_is_not_shown() -> None:
    passage = Passage(Origin("::1", 1, b"", b"http", b"h"), b"id", b"secret-ticket", b"f", frozenset())
    assert "secret" not in repr(passage)
