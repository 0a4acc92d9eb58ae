"""What is told of replicas: once per state, and nothing of what was over before."""

from __future__ import annotations

from modalnomad.cli.replicas_told import ReplicasTold
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from tests.support.apps import version

REVISION = version("one", 1).revisions[0]
BEGAN = 1000.0


class Heard:
    """A view that notes what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def replica(self, revision: Revision, replica: Replica) -> None:
        self.lines.append((replica.key.number, replica.state.value))


def at(number: int, state: ReplicaState, started_at: float) -> Replica:
    key = ReplicaKey(PoolKey(REVISION.id, ""), number, 1)
    return Replica(key=key, state=state, started_at=started_at)


def told(*snapshots: tuple[Replica, ...]) -> list[tuple[int, str]]:
    heard = Heard()
    follower = ReplicasTold(heard, {REVISION.id: REVISION}.get, since=BEGAN)
    for snapshot in snapshots:
        follower.tell(snapshot)
    return heard.lines


def test_replicas_that_had_ended_before_are_not_told() -> None:
    before = (at(0, ReplicaState.FAILED, 900), at(1, ReplicaState.GONE, 900), at(2, ReplicaState.READY, 900))

    assert told(before, before) == [(2, "ready")]


def test_the_end_of_one_that_lived_is_told_however_old_it_is() -> None:
    assert told((at(0, ReplicaState.READY, 900),), (at(0, ReplicaState.GONE, 900),)) == [(0, "ready"), (0, "gone")]


def test_a_start_that_failed_at_once_is_told() -> None:
    assert told((at(0, ReplicaState.FAILED, 1001),)) == [(0, "failed")]


def test_one_of_an_unknown_revision_is_not_told() -> None:
    heard = Heard()
    ReplicasTold(heard, dict[RevisionId, Revision]().get).tell((at(0, ReplicaState.READY, 1001),))

    assert heard.lines == []
