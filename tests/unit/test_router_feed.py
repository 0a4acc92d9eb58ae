"""Watches that fail start again, and the last good table stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendUnreachable
from modalnomad.model.replica import Address, PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.engine import Starter
from modalnomad.router import feed as feed_module
from modalnomad.router.activator import Activator
from modalnomad.router.auth import Auth
from modalnomad.router.feed import Feed
from modalnomad.router.table import Match, RouteTable
from modalnomad.settings import RouterSettings, ScalingSettings
from tests.support.stub_replicas import PLATFORM_KEY, make_match

MATCH = make_match()


class Backend:
    """Yields what it is given; an exception among it is raised. At the end it waits for ever."""

    def __init__(self, script: Sequence[object]) -> None:
        self.script = list(script)
        self.open = 0

    async def watch(self) -> AsyncIterator[object]:
        self.open += 1
        try:
            while self.script:
                step = self.script.pop(0)
                if isinstance(step, Exception):
                    raise step
                yield step
            await asyncio.Event().wait()
        finally:
            self.open -= 1

    async def start(self, key: ReplicaKey, reason: str, *, request_id: str = "") -> None:
        raise AssertionError("nothing is started here")


async def nobody(
    address: Address, method: bytes, path: bytes, headers: Sequence[tuple[bytes, bytes]], timeout: float | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    raise ConnectionRefusedError


def make_feed(discovery: Backend, engine: Backend, tables: list[RouteTable]) -> Feed:
    def latest(host: str) -> Match:
        return tables[-1].match(host)

    starter = cast(Starter, engine)
    activator = Activator(
        engine=starter,
        ask=nobody,
        forget=lambda address: None,
        resolve=latest,
        settings=RouterSettings(),
        scaling=ScalingSettings(),
        platform_key=PLATFORM_KEY,
    )
    return Feed(cast(Discovery, discovery), starter, tables.append, Auth(), activator)


def snapshot(index: int) -> RouteSnapshot:
    return RouteSnapshot((MATCH.route,), {MATCH.revision.id: MATCH.revision}, index=index)


async def test_a_watch_that_fails_or_breaks_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "FIRST_PAUSE", 0.0)
    tables: list[RouteTable] = []
    script = [snapshot(1), BackendUnreachable("no answer"), RuntimeError("a defect"), "nonsense", snapshot(2)]
    discovery = Backend(script)
    feed = make_feed(discovery, Backend([]), tables)
    async with Tasks("test") as tasks:
        tasks.guard(feed.run_routes(), "routes")
        await feed.routes_index.until(lambda index: index == 2)
        assert discovery.open == 1
    assert [table.index for table in tables] == [1, 2]
    assert discovery.open == 0


async def test_ended_replicas_are_shown_as_the_engine_says_and_unknown_ones_too() -> None:
    key = ReplicaKey(PoolKey(MATCH.revision.id), 0, 3)
    found = (Replica(key, ReplicaState.FAILED), Replica(ReplicaKey(key.pool, 1, 1), ReplicaState.STARTING))
    feed = make_feed(Backend([]), Backend([]), [])
    feed.take_replicas(found)
    assert feed.replicas.value == found
