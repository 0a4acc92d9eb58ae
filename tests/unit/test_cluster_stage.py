"""Which replicas a deploy on a cluster relies on, and which it ends, where others of the same revision live: of a
version that was served a short while ago."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modalnomad.model.errors import UserCodeFailed
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.settings import Settings
from modalnomad.wiring import cluster_stage
from modalnomad.wiring.cluster_stage import ClusterStage
from tests.support.rendered import revision

REVISION = revision()


def key_of(epoch: int, number: int = 0) -> ReplicaKey:
    return ReplicaKey(PoolKey(REVISION.id), number, epoch)


class Engine:
    """What it starts lives at once."""

    def __init__(self) -> None:
        self.stage: ClusterStage
        self.started: list[ReplicaKey] = []
        self.killed: set[ReplicaKey] = set()
        self.retired: list[RevisionId] = []

    async def prepare(self, revision: Revision) -> None:
        return

    async def start(self, key: ReplicaKey, reason: str) -> None:
        self.started.append(key)
        self.show(*(self.stage.replicas.value or ()), Replica(key, ReplicaState.STARTING))

    async def kill(self, key: ReplicaKey) -> None:
        self.killed.add(key)

    async def retire(self, revision: RevisionId) -> None:
        self.retired.append(revision)

    def show(self, *replicas: Replica) -> None:
        self.stage.replicas.set(replicas)

    def end(self, key: ReplicaKey) -> None:
        before = self.stage.replicas.value or ()
        self.show(*(replace(each, state=ReplicaState.GONE) if each.key == key else each for each in before))


class Discovery:
    """No version of any App is kept."""

    async def apps(self) -> tuple[()]:
        return ()


def made(*living: ReplicaKey, ready: Collection[ReplicaKey] | None = ()) -> tuple[ClusterStage, Engine]:
    """With replicas that somebody else started."""
    engine = Engine()
    cluster = SimpleNamespace(settings=Settings(backend="hashicorp"), discovery=Discovery())
    stage = engine.stage = ClusterStage(cast(Any, cluster), cast(Any, engine))
    engine.show(*(Replica(key, ReplicaState.STARTING) for key in living))
    stage.ready.set(None if ready is None else frozenset(ready))
    return stage, engine


@pytest.fixture(autouse=True)
def _a_router_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serving(stage: ClusterStage) -> bool:
        return True

    monkeypatch.setattr(ClusterStage, "serving", serving)


async def test_a_rollback_does_not_wait_for_a_replica_that_the_deploy_before_sent_away() -> None:
    """Nomad has it as alive until it is gone, which may take as long as its exit methods; then it is no failure of the
    program that it ended before it was ready."""
    leaving, fresh = key_of(1), key_of(2)
    stage, engine = made(leaving)
    warming = asyncio.create_task(stage.warm(REVISION, "", 1))
    await stage.replicas.until(lambda replicas: fresh in {each.key for each in replicas or ()})
    engine.end(leaving)
    stage.ready.set(frozenset({fresh}))
    await warming
    assert engine.started == [fresh]


async def test_one_that_is_ready_is_not_started_again() -> None:
    stage, engine = made(key_of(1), ready={key_of(1)})
    await stage.warm(REVISION, "", 1)
    assert engine.started == []


async def test_its_own_are_started_once_and_their_end_is_told() -> None:
    stage, engine = made()
    first = asyncio.create_task(stage.warm(REVISION, "", 1))
    await stage.replicas.until(bool)
    second = asyncio.create_task(stage.warm(REVISION, "", 1))
    await asyncio.sleep(0)
    engine.end(key_of(1))
    for warming in (first, second):
        with pytest.raises(UserCodeFailed, match="shop/resize does not start: it ended before it was ready"):
            await warming
    assert engine.started == [key_of(1)]


async def test_who_is_ready_is_awaited_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, engine = made(key_of(1), ready=None)
    warming = asyncio.create_task(stage.warm(REVISION, "", 1))
    await asyncio.sleep(0)
    stage.ready.set(frozenset({key_of(1)}))
    await warming
    assert engine.started == []

    monkeypatch.setattr(cluster_stage, "READY_TOLD", 0.0)
    stage, engine = made(key_of(1), ready=None)
    warming = asyncio.create_task(stage.warm(REVISION, "", 1))
    await stage.replicas.until(lambda replicas: len(replicas or ()) == 2)
    stage.ready.set(frozenset({key_of(2)}))
    await warming
    assert engine.started == [key_of(2)]


async def test_a_deploy_that_failed_ends_what_it_brought() -> None:
    stage, engine = made()
    warming = asyncio.create_task(stage.warm(REVISION, "", 1))
    await stage.replicas.until(bool)
    stage.ready.set(frozenset({key_of(1)}))
    await warming
    await stage.close()
    assert engine.retired == [REVISION.id]


async def test_a_deploy_that_failed_leaves_replicas_that_it_did_not_start() -> None:
    """They finish requests of a version that is not kept any more, or belong to another deploy of the same."""
    older, mine = key_of(1), key_of(2)
    stage, engine = made(older)
    warming = asyncio.create_task(stage.warm(REVISION, "", 1))
    await stage.replicas.until(lambda replicas: len(replicas or ()) == 2)
    stage.ready.set(frozenset({mine}))
    await warming
    await stage.close()
    assert (engine.retired, engine.killed) == ([], {mine})

    stage, engine = made(older)
    await stage.prepare(REVISION)
    engine.end(older)
    await stage.close()
    assert engine.retired == [REVISION.id], "none of them lives any more"
