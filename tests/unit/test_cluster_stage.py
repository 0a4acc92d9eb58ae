"""Which replicas a deploy on a cluster relies on, and which it ends, where others of the same revision live: of a
version that was served a short while ago."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modalnomad.model.errors import UserCodeFailed
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, PoolKey, Replica, ReplicaKey, ReplicaState
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
        self.taken_back: set[ReplicaKey] = set()
        self.retired: list[RevisionId] = []
        self.unseen = False
        """What starts is not shown."""
        self.asked = asyncio.Event()

    async def prepare(self, revision: Revision) -> None:
        return

    async def start(self, key: ReplicaKey, reason: str) -> None:
        self.started.append(key)
        self.asked.set()
        if not self.unseen:
            self.show(*(self.stage.replicas.value or ()), Replica(key, ReplicaState.STARTING))

    async def take_back(self, keys: Collection[ReplicaKey]) -> None:
        self.taken_back |= set(keys)

    async def retire(self, revision: RevisionId) -> None:
        self.retired.append(revision)

    def show(self, *replicas: Replica) -> None:
        self.stage.replicas.set(replicas)

    def end(self, key: ReplicaKey) -> None:
        before = self.stage.replicas.value or ()
        self.show(*(replace(each, state=ReplicaState.GONE) if each.key == key else each for each in before))


@dataclass
class Discovery:
    """What of REVISION is in a record."""

    kept: bool
    served: bool = False

    async def apps(self) -> tuple[Any, ...]:
        version = SimpleNamespace(revisions=(REVISION,) * self.kept)
        return (SimpleNamespace(versions=(version,), revisions=(REVISION,) * self.served),)


def made(
    *living: ReplicaKey, ready: Collection[ReplicaKey] | None = (), kept: bool = False
) -> tuple[ClusterStage, Engine]:
    """With replicas that somebody else started."""
    engine = Engine()
    cluster = SimpleNamespace(settings=Settings(backend="hashicorp"), discovery=Discovery(kept))
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


async def test_one_that_leaves_after_it_was_found_ready_fails_no_deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was ready, and its end, while another one is being started, says nothing about the program."""
    leaving, mine = key_of(1), key_of(1, number=1)
    stage, engine = made(leaving, ready={leaving})
    start = engine.start

    async def meanwhile(key: ReplicaKey, reason: str) -> None:
        engine.end(leaving)
        stage.ready.set(frozenset({mine}))
        await start(key, reason)

    monkeypatch.setattr(engine, "start", meanwhile)
    await stage.warm(REVISION, "", 2)
    assert engine.started == [mine]


async def test_consul_that_does_not_say_who_is_ready_is_awaited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _ = made(*(key_of(1, number) for number in range(3)), ready=None)
    waits = 0

    class Over:
        async def __aenter__(self) -> None:
            nonlocal waits
            waits += 1
            raise TimeoutError

        async def __aexit__(self, *exc: object) -> None:
            return

    monkeypatch.setattr(asyncio, "timeout", lambda seconds: Over())
    warming = asyncio.create_task(stage.warm(REVISION, "", 3))
    await stage.replicas.until(lambda replicas: len(replicas or ()) == 6)
    stage.ready.set(frozenset(key_of(2, number) for number in range(3)))
    await warming
    assert waits == 1


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
    assert (engine.retired, engine.taken_back) == ([], {mine})

    stage, engine = made(older)
    await stage.prepare(REVISION)
    engine.end(older)
    await stage.close()
    assert engine.retired == [REVISION.id], "none of them lives any more"


@pytest.mark.parametrize("unseen", [True, False])
async def test_what_it_asked_for_beside_others_is_taken_back_though_it_does_not_run(unseen: bool) -> None:
    """The answer to a dispatch is under way still, or there is no room for it now: it would start when there is some,
    for a version that never came."""
    older, mine = key_of(1), key_of(2)
    stage, engine = made(older)
    engine.unseen = unseen
    warming = asyncio.create_task(stage.warm(REVISION, "", 1))
    if unseen:
        await engine.asked.wait()
        warming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await warming
    else:
        await stage.replicas.until(lambda replicas: len(replicas or ()) == 2)
        failure = Failure("no_capacity", "no room")
        engine.show(Replica(older, ReplicaState.STARTING), Replica(mine, ReplicaState.FAILED, failure=failure))
        with pytest.raises(UserCodeFailed, match="no room"):
            await warming
    await stage.close()
    assert (engine.retired, engine.taken_back) == ([], {mine})


async def test_a_rollback_that_failed_ends_what_it_started_and_keeps_the_job() -> None:
    older, mine = key_of(1), key_of(2)
    for living in ((older,), ()):
        stage, engine = made(*living, kept=True)
        warming = asyncio.create_task(stage.warm(REVISION, "", 1))
        await engine.asked.wait()
        stage.ready.set(frozenset({mine, older}))
        await warming
        await stage.close()
        assert (engine.retired, engine.taken_back) == ([], {mine if living else older})


@pytest.mark.parametrize("told", [True, False])
async def test_what_was_published_is_left_to_the_routers(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is replaced again before the deploy that started it has ended: it finishes what it holds."""

    async def no_routers(stage: ClusterStage) -> tuple[()]:
        return ()

    monkeypatch.setattr(ClusterStage, "_routers", no_routers)
    stage, engine = made(kept=True)
    stage.ready.set(frozenset({key_of(1)}))
    await stage.warm(REVISION, "", 1)
    if told:
        await stage.served("shop", "main", 2)
    else:
        cast(Any, stage)._cluster.discovery.served = True
    await stage.close()
    assert (engine.retired, engine.taken_back) == ([], set())
