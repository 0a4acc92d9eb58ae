"""Which revisions a running platform knows: wanted again while they go, and what comes after the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from modalnomad.kit.watch import Cell
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.model.routes import RouteSnapshot
from modalnomad.settings import RouterSettings
from modalnomad.wiring.revisions import Revisions
from tests.support.stub_replicas import make_match


class Platform:
    """Engine and pools, as much as is asked of them. A replica that was retired ends when the test says so."""

    def __init__(self) -> None:
        self.replicas: Cell[tuple[Replica, ...]] = Cell(())
        self.drained: list[RevisionId] = []
        self.forgotten: list[str] = []
        self.prepared: list[RevisionId] = []
        self.ordered: list[tuple[RevisionId, RevisionId]] = []
        self.is_apart = False
        self.engine = SimpleNamespace(
            apart=lambda revision: self.is_apart,
            prepare=self.prepare,
            retire=self.forget,
            after=lambda revision, earlier: self.ordered.append((revision, earlier)),
        )
        self.pools = SimpleNamespace(replicas=self.replicas, retire=self.drain, led_to=frozenset())

    async def prepare(self, revision: Revision) -> None:
        self.prepared.append(revision.id)

    async def forget(self, revision: str) -> None:
        self.forgotten.append(revision)

    async def drain(self, revision: RevisionId) -> None:
        self.drained.append(revision)

    def run(self, *revisions: RevisionId) -> None:
        """One replica of each."""
        self.replicas.set(
            tuple(Replica(ReplicaKey(PoolKey(revision), 0, 1), ReplicaState.READY) for revision in revisions)
        )


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
async def revisions(platform: Platform) -> AsyncIterator[Revisions]:
    known = Revisions(RouterSettings())
    parts: Any = platform
    known.attach(parts)
    yield known
    await known.close()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_staged_again_while_it_drains_is_drained_again(platform: Platform, revisions: Revisions) -> None:
    """A deploy fails, is tried again at once with the same source, and fails again: its replicas must not stay."""
    revision = make_match().revision
    first, second = object(), object()
    platform.run(revision.id)

    revisions.hold(revision, first)
    revisions.let_go(first)
    await turns()
    assert platform.drained == [revision.id]

    revisions.hold(revision, second)
    await turns()
    revisions.let_go(second)
    await turns()
    assert platform.drained == [revision.id] * 2

    platform.run()
    await turns()
    assert platform.forgotten == [revision.id]
    assert not revisions.known


async def test_what_is_wanted_again_while_it_drains_stays(platform: Platform, revisions: Revisions) -> None:
    revision = make_match().revision
    platform.run(revision.id)
    revisions.hold(revision, self := object())
    revisions.let_go(self)
    await turns()

    revisions.take(RouteSnapshot(revisions={revision.id: revision}, index=1))
    revisions.routed()
    platform.run()
    await turns()

    assert platform.forgotten == []
    assert list(revisions.known) == [revision.id]


async def test_a_deploy_that_comes_while_it_ends_is_left_to_the_next_platform(
    platform: Platform, revisions: Revisions
) -> None:
    revision = make_match().revision
    await revisions.close()

    revisions.take(RouteSnapshot(revisions={revision.id: revision}, index=1))
    revisions.routed()
    revisions.take(RouteSnapshot(index=2))
    revisions.routed()

    assert platform.prepared == []


async def test_what_requests_are_still_led_to_is_not_forgotten(platform: Platform, revisions: Revisions) -> None:
    """A snapshot is known here before the router acts on it: a request that came between woke what was gone."""
    old, other = make_match().revision, make_match(version=2).revision
    revisions.take(RouteSnapshot(revisions={old.id: old}, index=1))
    platform.pools.led_to = frozenset({old.id})
    revisions.routed()
    revisions.hold(other, deploy := object())

    revisions.take(RouteSnapshot(index=2))
    revisions.let_go(deploy)
    await turns()
    assert platform.forgotten == [other.id]
    assert list(revisions.known) == [old.id]

    platform.pools.led_to = frozenset()
    revisions.routed()
    await turns()
    assert platform.forgotten == [other.id, old.id]


async def test_an_app_that_was_stopped_and_is_served_again_waits_for_what_still_runs_of_it(
    platform: Platform, revisions: Revisions
) -> None:
    """Its last requests are still answered, on the port or the card that the new version needs."""
    platform.is_apart = True
    old, new = make_match().revision, make_match(version=2).revision
    revisions.take(RouteSnapshot(revisions={old.id: old}, index=1))
    platform.run(old.id)
    revisions.take(RouteSnapshot(index=2))
    revisions.routed()
    await turns()

    revisions.take(RouteSnapshot(revisions={new.id: new}, index=3))

    assert platform.ordered == [(new.id, old.id)]


async def test_an_app_of_which_nothing_runs_any_more_is_not_waited_for(
    platform: Platform, revisions: Revisions
) -> None:
    platform.is_apart = True
    old, new = make_match().revision, make_match(version=2).revision
    revisions.take(RouteSnapshot(revisions={old.id: old}, index=1))
    revisions.take(RouteSnapshot(index=2))
    revisions.routed()
    await turns()
    assert platform.forgotten == [old.id]

    revisions.take(RouteSnapshot(revisions={new.id: new}, index=3))

    assert platform.ordered == []


async def test_what_is_started_ahead_waits_for_what_is_served_no_more_and_not_for_what_is(
    platform: Platform, revisions: Revisions
) -> None:
    """`deploy --check` right after `app stop`; and after a check that was given up, whose replica still ends."""
    platform.is_apart = True
    served, stopped, given_up, new = (make_match(version=number).revision for number in (1, 2, 3, 4))
    other = served.model_copy(update={"id": RevisionId("o" * 32), "app": "other"})
    revisions.take(RouteSnapshot(revisions={stopped.id: stopped, other.id: other}, index=1))
    platform.run(stopped.id, given_up.id, other.id)
    revisions.take(RouteSnapshot(index=2))
    revisions.routed()
    revisions.hold(given_up, before := object())
    revisions.let_go(before)
    revisions.hold(new, object())

    revisions.order(new)
    assert platform.ordered == [(new.id, stopped.id), (new.id, given_up.id)]

    revisions.take(RouteSnapshot(revisions={served.id: served}, index=3))
    platform.ordered.clear()
    revisions.order(new)
    assert (new.id, served.id) not in platform.ordered


async def test_what_was_published_stays_warm_though_a_snapshot_from_before_comes_first(
    platform: Platform, revisions: Revisions
) -> None:
    """A deploy is interrupted right after it has published. Another App changed at the same time, and the records were
    read for that just before."""
    revision = make_match().revision
    name = revision.environment, revision.app
    revisions.take(RouteSnapshot(serials={name: 1}, index=1))
    revisions.hold(revision, deploy := object())
    platform.run(revision.id)

    revisions.let_go(deploy, records=[record_of(revision, serial=2)])
    revisions.take(RouteSnapshot(serials={name: 1, ("main", "other"): 1}, index=2))
    revisions.routed()
    await turns()
    assert platform.drained == []

    revisions.take(RouteSnapshot(serials={name: 3, ("main", "other"): 1}, index=3))
    revisions.routed()
    await turns()
    assert platform.drained == [revision.id], "another change of the App took it away since"


async def test_what_is_published_again_stays_warm_though_its_end_is_seen_first(
    platform: Platform, revisions: Revisions
) -> None:
    """Stopped, and rolled back to at once; the rollback is interrupted right after it has published."""
    revision = make_match().revision
    name = revision.environment, revision.app
    revisions.take(RouteSnapshot(revisions={revision.id: revision}, serials={name: 1}, index=1))
    platform.run(revision.id)
    revisions.hold(revision, rollback := object())

    revisions.let_go(rollback, records=[record_of(revision, serial=3)])
    revisions.take(RouteSnapshot(serials={name: 2}, index=2))
    revisions.routed()
    await turns()

    assert platform.drained == []


async def test_where_records_cannot_be_read_the_next_snapshot_decides(platform: Platform, revisions: Revisions) -> None:
    revision = make_match().revision
    revisions.hold(revision, deploy := object())
    platform.run(revision.id)

    revisions.let_go(deploy, records=None)
    await turns()
    assert platform.drained == []

    revisions.take(RouteSnapshot(index=1))
    revisions.routed()
    await turns()
    assert platform.drained == [revision.id]


def record_of(revision: Revision, serial: int) -> AppRecord:
    """Of an App that serves nothing else."""
    version = AppVersion(number=serial, deployed_at=0, revisions=(revision,))
    return AppRecord(app=revision.app, environment=revision.environment, serial=serial, versions=(version,))
