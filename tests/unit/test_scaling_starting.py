"""How many replicas are started at once."""

from __future__ import annotations

from modalnomad.scaling.decide import STARTING, Observed, Policy, Seen, decide, fresh


def test_an_absurd_minimum_is_approached_in_steps() -> None:
    policy = Policy(min=1_000_000)
    assert decide(0.0, Observed(), policy, fresh(policy)).start == STARTING
    some = tuple(Seen(number, "starting") for number in range(STARTING - 3))
    assert decide(0.0, Observed(some), policy, fresh(policy)).start == 3
    ready = tuple(Seen(number, "ready") for number in range(STARTING))
    assert decide(0.0, Observed(ready), policy, fresh(policy)).start == STARTING


def test_waiting_requests_are_not_held_up_by_that() -> None:
    policy = Policy(min=1_000_000)
    observed = Observed(tuple(Seen(number, "starting") for number in range(STARTING)), waiting=150)
    assert decide(0.0, observed, policy, fresh(policy)).start == 150
