"""Two revisions that cannot live at once: the new one's start waits for the end of the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from modalnomad.deploy.succession import OrderedEngine
from modalnomad.kit.watch import Cell
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey, ReplicaState

OLD, MIDDLE, NEW = RevisionId("o" * 32), RevisionId("m" * 32), RevisionId("n" * 32)


def key(revision: RevisionId) -> ReplicaKey:
    return ReplicaKey(PoolKey(revision), 0, 1)


class FakeEngine:
    """Starts are noted; the test says which replicas there are."""

    def __init__(self) -> None:
        self.replicas: Cell[tuple[Replica, ...]] = Cell(())
        self.started: list[ReplicaKey] = []

    async def start(self, key: ReplicaKey, reason: str, *, request_id: str = "") -> None:
        self.started.append(key)

    async def retire(self, revision: str) -> None:
        return

    async def kill(self, key: ReplicaKey) -> None:
        return

    def watch(self) -> AsyncIterator[tuple[Replica, ...]]:
        return self.replicas.watch()

    def state(self, state: ReplicaState) -> None:
        self.replicas.set((Replica(key(OLD), state),))


def ordered() -> tuple[OrderedEngine, FakeEngine]:
    fake: Any = FakeEngine()
    return OrderedEngine(fake, lambda revision: True), fake


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_start_waits_for_the_end_of_the_earlier_one() -> None:
    engine, fake = ordered()
    fake.state(ReplicaState.READY)
    engine.after(NEW, OLD)
    starting = asyncio.ensure_future(engine.start(key(NEW), "wake"))

    await turns()
    assert fake.started == []
    fake.state(ReplicaState.DRAINING)
    await turns()
    assert fake.started == []
    fake.state(ReplicaState.GONE)
    await starting

    assert fake.started == [key(NEW)]


async def test_others_do_not_wait() -> None:
    engine, fake = ordered()
    fake.state(ReplicaState.READY)
    engine.after(NEW, OLD)

    await engine.start(key(OLD), "more")

    assert fake.started == [key(OLD)]


async def test_the_second_start_waits_no_more() -> None:
    engine, fake = ordered()
    fake.state(ReplicaState.FAILED)
    engine.after(NEW, OLD)
    await engine.start(key(NEW), "wake")
    fake.state(ReplicaState.READY)

    async with asyncio.timeout(1):
        await engine.start(key(NEW), "again")


async def test_going_back_turns_the_order_round() -> None:
    engine, fake = ordered()
    engine.after(NEW, OLD)
    engine.after(OLD, NEW)
    fake.state(ReplicaState.READY)

    async with asyncio.timeout(1):
        await engine.start(key(NEW), "no longer the successor")
        await engine.start(key(OLD), "nothing of the new one runs")


async def test_what_the_one_before_waits_for_is_waited_for_too() -> None:
    """Two edits during one long request: the port, or the card, is still the first version's."""
    engine, fake = ordered()
    fake.state(ReplicaState.DRAINING)
    engine.after(MIDDLE, OLD)
    engine.after(NEW, MIDDLE)
    starting = asyncio.ensure_future(engine.start(key(NEW), "wake"))

    await turns()
    assert fake.started == []
    fake.state(ReplicaState.GONE)
    await starting

    assert fake.started == [key(NEW)]


async def test_nothing_waits_for_itself() -> None:
    engine, fake = ordered()
    fake.state(ReplicaState.READY)
    engine.after(MIDDLE, OLD)
    engine.after(OLD, MIDDLE)

    async with asyncio.timeout(1):
        await engine.start(key(OLD), "back")


async def test_a_start_that_is_killed_while_it_waits_does_not_begin() -> None:
    engine, fake = ordered()
    fake.state(ReplicaState.DRAINING)
    engine.after(MIDDLE, OLD)
    held = asyncio.ensure_future(engine.start(key(MIDDLE), "wake"))
    await turns()

    await engine.kill(key(MIDDLE))
    engine.after(NEW, MIDDLE)
    fake.state(ReplicaState.GONE)
    await held
    await engine.start(key(NEW), "wake")

    assert fake.started == [key(NEW)]


async def test_a_start_that_waits_goes_on_waiting_when_the_order_turns_round() -> None:
    """A change and its undoing during one long request: until it is killed, the first version still has the port."""
    engine, fake = ordered()
    fake.state(ReplicaState.DRAINING)
    engine.after(MIDDLE, OLD)
    held = asyncio.ensure_future(engine.start(key(MIDDLE), "wake"))
    await turns()

    engine.after(OLD, MIDDLE)
    fake.state(ReplicaState.READY)
    await turns()
    assert fake.started == []
    await engine.kill(key(MIDDLE))
    fake.state(ReplicaState.GONE)
    await held

    assert fake.started == []
