"""Counts: histograms, what is forgotten and when, and the names they are shown under."""

from __future__ import annotations

import re

import pytest

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, PoolKey, ReplicaKey
from modalnomad.router.metrics import ALL
from modalnomad.router.observer import LATEST, Observer
from modalnomad.router.places import Failed
from modalnomad.router.pool import Pool
from modalnomad.router.telemetry import FORGET_AFTER, SECONDS, Histogram, Meters
from tests.support.stub_replicas import make_match


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.0025, 0), (0.0026, 1), (1.0, 8), (300.0, 12), (1e9, 13)])
def test_a_value_falls_into_the_bucket_whose_end_it_does_not_pass(seconds: float, bucket: int) -> None:
    histogram = Histogram()

    histogram.add(seconds)

    assert histogram.counts.index(1) == bucket
    assert (histogram.count, histogram.sum) == (1, seconds)
    assert list(SECONDS) == sorted(SECONDS)


def test_an_endpoint_is_counted_on_until_an_hour_after_it_was_served() -> None:
    meters = Meters()
    kept, gone = meters.of("main", "shop", "f", "f"), meters.of("main", "shop", "g", "g")
    meters.keep([kept, gone], 0.0)

    meters.keep([kept], 10.0)
    meters.keep([kept], 10.0 + FORGET_AFTER - 1)
    assert meters.of("main", "shop", "g", "g") is gone  # served again: its counts go on
    meters.keep([kept], 20.0)
    meters.keep([kept], 20.0 + FORGET_AFTER)

    assert list(meters) == [kept]


class Dummy:
    """As much of a pool as the observer asks for."""

    def __init__(self, revision: RevisionId) -> None:
        self.key = PoolKey(revision)


def test_functions_are_forgotten_and_decisions_bounded() -> None:
    now = 0.0
    observer = Observer(lambda: now)
    revision = make_match().revision
    observer.knows(revision)
    pool: Pool = Dummy(revision.id)  # type: ignore[assignment]
    for number in range(LATEST + 10):
        observer.saw(pool, Failed(ReplicaKey(pool.key, number, 1), Failure("start_failed", f"no {number}", "secret")))

    (life,) = observer.lives()
    assert life.start_failures == {"start_failed": LATEST + 10}
    assert len(observer.decisions) == LATEST
    assert observer.decisions[-1].reason == f"no {LATEST + 9}"
    assert "secret" not in repr(observer.decisions)

    observer.forget([revision.id])
    now = 2 * FORGET_AFTER
    observer.forget([])
    assert observer.lives() == (life,)
    now = 3 * FORGET_AFTER
    observer.forget([])
    assert observer.lives() == ()


def test_failures_beside_a_wake_are_not_kept() -> None:
    """Pools of class parameters come and go without end."""
    observer = Observer(lambda: 0.0)
    revision = make_match().revision
    observer.knows(revision)
    for number in range(5):
        pool: Pool = Dummy(revision.id)  # type: ignore[assignment]
        pool.key = PoolKey(revision.id, f'{{"n": {number}}}')
        observer.saw(pool, Failed(ReplicaKey(pool.key, 0, 1), Failure("start_failed", "no")))
    assert not observer._failed


def test_names_are_as_prometheus_has_them() -> None:
    metrics = [described for _, group in ALL for described in group]
    names = [described.name for described in metrics]

    assert len(names) == len(set(names))
    for described in metrics:
        assert re.fullmatch(r"modalnomad_[a-z]+(_[a-z]+)*", described.name)
        assert described.name.endswith("_total") == (described.kind == "counter")
        assert described.kind != "histogram" or described.name.endswith("_seconds")
        assert described.help.endswith(".")
        assert not {"host", "path", "client", "replica", "revision"} & set(described.labels)
