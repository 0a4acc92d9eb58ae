"""How a `serve` ends: who is retired when, and what is still waited for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from modalnomad.kit.watch import Cell
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Function, Source
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.router.load import Load
from modalnomad.settings import EmbeddedSettings, RouterSettings, Settings
from modalnomad.wiring import ending
from modalnomad.wiring.ending import Ending, requests_in_words


def revision(tag: str) -> Revision:
    return Revision.make(
        app="shop",
        environment="main",
        function=Function(tag=tag),
        source=Source(mode="script", entry="app.py", root="/x", module="app"),
        bundle=Digest("b" * 64),
        image=BuiltImage(digest=Digest("i" * 64), python="3.11"),
    )


class World:
    """Router and pools: one replica for each function; those in `requests` have so many requests."""

    def __init__(self, *tags: str, **requests: int) -> None:
        made = [revision(tag) for tag in tags]
        self.revisions = {each.id: each for each in made}
        self.ids = {each.function.tag: each.id for each in made}
        self.requests = {self.ids[tag]: count for tag, count in requests.items()}
        self.keys = {each.id: ReplicaKey(PoolKey(each.id), 0, 1) for each in made}
        self.replicas = Cell(tuple(Replica(key, ReplicaState.READY) for key in self.keys.values()))
        self.retired: Cell[tuple[str, ...]] = Cell(())
        self.slow: set[str] = set()
        self.drained = asyncio.Event()
        self.told: Cell[tuple[str, ...]] = Cell(())

    def ending(self, drain: float = 5, grace: float = 30) -> Ending:
        settings = Settings(router=RouterSettings(drain_timeout=drain), embedded=EmbeddedSettings(grace_period=grace))
        return Ending(self, self, self.revisions, settings)

    async def drain(self) -> bool:
        await self.drained.wait()
        return not self.requests

    def load(self, revision: RevisionId) -> Load:
        return Load(running=self.requests.get(revision, 0))

    def busy(self) -> set[ReplicaKey]:
        return {self.keys[revision] for revision in self.requests}

    async def retire(self, revision: RevisionId) -> None:
        tag = self.revisions[revision].function.tag
        self.retired.set((*self.retired.value, tag))
        if revision not in self.requests and tag not in self.slow:
            self.end(tag)

    def tell(self, text: str) -> None:
        self.told.set((*self.told.value, text))

    def end(self, tag: str) -> None:
        gone = self.keys[self.ids[tag]]
        self.replicas.set(
            tuple(replace(one, state=ReplicaState.GONE) if one.key == gone else one for one in self.replicas.value)
        )

    async def warm(self, revision: Revision, key: PoolKey, count: int) -> None:
        raise NotImplementedError

    async def routed(self, revisions: frozenset[RevisionId]) -> None:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "LOOK", 0.0)
    monkeypatch.setattr(ending, "TELL_AFTER", 0.0)


async def until_retired(world: World, *tags: str) -> None:
    async with asyncio.timeout(20):
        await world.retired.until(lambda retired: set(tags) <= set(retired))


async def test_what_is_idle_ends_while_a_request_still_runs() -> None:
    world = World("idle", "busy", busy=1)
    run = asyncio.ensure_future(world.ending().run(world.tell))
    await until_retired(world, "idle")
    assert "busy" not in world.retired.value
    assert not run.done()

    world.requests.clear()  # answered
    await until_retired(world, "busy")
    world.drained.set()
    await run
    assert world.told.value == ()


async def test_a_request_that_had_its_time_is_not_waited_for_again() -> None:
    world = World("stuck", stuck=1)
    world.drained.set()
    async with asyncio.timeout(20):
        await world.ending().run(world.tell)
    assert world.told.value == ("Cut off, not done after 5 s: 1 request of shop/stuck",)
    assert "stuck" in world.retired.value


async def test_replicas_that_still_exit_are_waited_for_and_named() -> None:
    world = World("slow")
    world.slow = {"slow"}
    world.drained.set()
    run = asyncio.ensure_future(world.ending().run(world.tell))
    async with asyncio.timeout(20):
        (told,) = await world.told.until(bool)
    assert "replicas of slow to end" in told
    assert not run.done()
    world.end("slow")
    await run


async def test_one_deadline_holds_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "SLACK", 0.0)
    world = World("slow")
    world.slow = {"slow"}
    world.drained.set()
    made = world.ending(drain=0.0, grace=0.0)
    async with asyncio.timeout(20):
        await made.run(world.tell)
    assert (world.ending().limit, world.ending(drain=50).limit) == (30, 50)


def test_requests_in_words() -> None:
    world = World("f", "g", "h", f=2, g=1)
    assert world.ending().under_way() == {"shop/f": 2, "shop/g": 1}
    assert requests_in_words(world.ending().under_way()) == "2 requests of shop/f, 1 of shop/g"
    assert requests_in_words({"shop/g": 1}) == "1 request of shop/g"
