"""Which number and epoch the next replica gets."""

from __future__ import annotations

from modalnomad.model.ids import LAST_EPOCH, RevisionId
from modalnomad.model.manifest import Function
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.render.cluster import META_REVISION, key_of
from modalnomad.render.nomad import dispatch_body
from modalnomad.router.roster import Roster
from modalnomad.scaling.decide import Policy

POOL = PoolKey(RevisionId("0" * 32))


def test_an_epoch_is_never_used_twice_and_the_lowest_free_number_comes_first() -> None:
    roster = Roster(POOL, Policy.of(Function(tag="f"), parametrized=False))
    roster.hear_of(ReplicaKey(POOL, 1, 7), None)

    assert [roster.add_next(0.0).key.name for _ in range(3)] == ["0.1", "1.8", "2.1"]


def test_a_number_whose_epochs_somebody_used_up_is_left_out() -> None:
    """What is started must be read again: a child of an epoch with one digit more is nobody's."""
    roster = Roster(POOL, Policy.of(Function(tag="f"), parametrized=False))
    roster.hear_of(ReplicaKey(POOL, 0, LAST_EPOCH - 1), None)
    last = roster.add_next(0.0).key
    roster.remove(last)
    after = roster.add_next(0.0).key

    assert (last.name, after.name) == (f"0.{LAST_EPOCH}", "1.1")
    for key in (last, after):
        meta = dispatch_body(key, reason="a test")["Meta"]
        assert key_of({META_REVISION: POOL.revision, **meta}) == key
