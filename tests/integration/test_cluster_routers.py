"""Several routers in front of one cluster: a replica is started once whoever wants it, and of a router that goes, is
killed, or cannot reach its servers nothing is lost but what it carried."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, Router, cluster, leader_of
from tests.support.load import PROGRAM, SITE, Load, verdict
from tests.support.nomad_calls import Calls

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),  # several deploys and routers, beside a load
]

SITES = {
    "crowd": {"window": 2, "most": 4, "least": 0, "inputs": 16},
    "steady": {"window": 2, "most": 4, "least": 0, "inputs": 2},
    "kept": {"window": 600, "most": 1, "least": 0, "inputs": 10},
}
HELD = """
import time
while "MODALNOMAD_REPLICA" in os.environ and os.path.exists({gate!r}):
    time.sleep(0.02)
"""
ALL = ("raw", "kept", "pooled", "stream", "websocket")


@dataclass
class World:
    """A cluster with an App whose requests are counted."""

    cluster: Cluster
    calls: Calls
    seen: Path
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def router(self) -> AbstractAsyncContextManager[Router]:
        """One more."""
        return self.cluster.router(env={"MODALNOMAD_ARTIFACTS__PORT": "0"})

    async def deploy(self, version: str) -> None:
        """Another text of it."""
        text = PROGRAM.format(folder=self.seen, version=version, name="counted", pause=0.05)
        text += HELD.format(gate=str(self.gate))
        text += "".join(SITE.format(site=site, **limits) for site, limits in SITES.items())
        file = self.cluster.folder / "counted.py"
        await asyncio.to_thread(file.write_text, text)
        await self.cluster.cli("deploy", str(file))

    @property
    def gate(self) -> Path:
        """No replica gets ready while it is there."""
        return self.cluster.folder / "gate"

    @contextmanager
    def held(self) -> Iterator[None]:
        """It is there within the block."""
        self.gate.touch()
        try:
            yield
        finally:
            self.gate.unlink()

    def load(self, router: Router, site: str, clients: Sequence[str] = ALL) -> Load:
        """Clients of one router."""
        target = f"counted-{site}.localhost", int(router.url.rpartition(":")[2])
        return Load(lambda: target, clients=clients, numbers=self.numbers)

    async def ask(self, router: Router, site: str) -> int:
        """The status of one counted request."""
        status, _ = await router.get(f"counted-{site}.localhost", f"/?{next(self.numbers)}")
        return status

    async def children(self, site: str) -> list[str]:
        """`number.epoch` of every replica that was ever dispatched."""
        jobs = await self.calls.get("/v1/jobs", namespace="*", meta=True)
        return [
            f"{job['Meta']['number']}.{job['Meta']['epoch']}"
            for job in jobs
            if job["ID"].startswith(f"counted.{site}.") and job["ParentID"]
        ]

    async def asleep(self, site: str) -> None:
        """Returns when none of its replicas lives."""
        await self.calls.until(
            "/v1/allocations",
            lambda allocs: (
                not any(
                    alloc["JobID"].startswith(f"counted.{site}.") and alloc["ClientStatus"] in {"pending", "running"}
                    for alloc in allocs
                )
            ),
            namespace="*",
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    folder = tmp_path_factory.mktemp("world")
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(cluster(folder, MODALNOMAD_ROUTER__RATE="0"))
        calls = await stack.enter_async_context(Calls(made.nomad.address))
        seen = folder / "seen"
        seen.mkdir()
        found = World(made, calls, seen)
        await found.deploy("v1")
        await stack.enter_async_context(made.artifacts())
        yield found


def ready(site: str) -> Callable[[Any], list[str]]:
    """/debug → the ready replicas of a site."""

    def of(debug: Any) -> list[str]:
        pools = [pool for pool in debug["pools"] if pool["function"] == site and not pool["retired"]]
        return [each["replica"] for pool in pools for each in pool["replicas"] if each["state"] == "ready"]

    return of


def waiting(site: str, count: int) -> Callable[[Any], bool]:
    """/debug → so many requests of a site wait."""

    def of(debug: Any) -> bool:
        return bool(sum(pool["waiting"] for pool in debug["pools"] if pool["function"] == site) == count)

    return of


@pytest.mark.parametrize("count", [1, 3])
async def test_many_requests_at_once_at_zero_start_each_replica_once(world: World, count: int) -> None:
    async with AsyncExitStack() as stack:
        routers = [await stack.enter_async_context(world.router()) for _ in range(count)]
        await world.asleep("crowd")
        before = await world.children("crowd")
        with world.held():
            spawn = world.cluster.tasks.spawn
            asked = [spawn(world.ask(routers[number % count], "crowd"), "ask") for number in range(64)]
            for number, router in enumerate(routers):
                await router.shows("/debug", waiting("crowd", len(asked[number::count])))
        assert await asyncio.gather(*asked) == [200] * 64

    started = list(await world.children("crowd"))
    for each in before:
        started.remove(each)
    numbers = sorted(each.partition(".")[0] for each in started)
    assert numbers == ["0", "1", "2", "3"][: len(numbers)], "each place was started once"
    assert len(numbers) == 4 if count == 1 else len(numbers) > 1


async def test_a_router_that_is_killed_takes_only_what_it_carried_and_another_one_sends_replicas_away(
    world: World,
) -> None:
    async with AsyncExitStack() as stack:
        routers = [await stack.enter_async_context(world.router()) for _ in range(3)]
        holder = await leader_of(routers)
        others = [router for router in routers if router is not holder]
        async with world.load(others[0], "steady") as one, world.load(others[1], "steady") as other:
            async with world.load(holder, "steady") as killed:
                await killed.until(20)
                holder.process.send_signal(signal.SIGKILL)
                await holder.process.wait()
            _end_sessions_of_the_lock(world)
            await one.until(50)
            await other.until(50)
        found = verdict([one, other], world.seen)
        assert (found.lost, found.doubled) == ([], [])
        assert len(killed.verdict(world.seen, stopping=True).lost) <= len(ALL), "each client had one request on its way"
        await leader_of(others)
        await world.asleep("steady")


def _end_sessions_of_the_lock(world: World) -> None:
    """As their time to live does, without the wait for it."""
    store = world.cluster.consul.store
    for entry in store.tree("modalnomad/locks/drains")[1]:
        if entry.session:
            store.end_session(entry.session)


async def test_a_router_started_without_consul_serves_its_last_table_and_says_since_when(world: World) -> None:
    async with world.router() as earlier:
        assert await world.ask(earlier, "crowd") == 200

    async with AsyncExitStack() as stack:
        async with world.cluster.consul.gone():
            router = await stack.enter_async_context(world.router())
            assert await world.ask(router, "crowd") == 200
            readyz, debug = await router.page("/readyz"), await router.page("/debug")
            assert (readyz["status"], list(readyz["stale"])) == ("ready", ["consul"])
            assert debug["stale"]["consul"]["since"] == readyz["stale"]["consul"]["since"] <= debug["time"]
        await router.shows("/readyz", lambda found: "stale" not in found)


async def test_a_router_started_without_nomad_serves_the_replicas_that_consul_knows(world: World) -> None:
    async with world.router() as earlier:
        assert await world.ask(earlier, "kept") == 200
    before = await world.children("kept")

    async with AsyncExitStack() as stack:
        async with world.cluster.nomad.away():
            router = await stack.enter_async_context(world.router())
            assert await world.ask(router, "kept") == 200
            assert list((await router.page("/readyz"))["stale"]) == ["nomad"]
        await router.shows("/readyz", lambda found: "stale" not in found)
        assert await world.ask(router, "kept") == 200
        assert await world.children("kept") == before


async def test_deploys_under_load_through_two_routers_lose_nothing(world: World) -> None:
    async with world.router() as first, world.router() as second:
        async with world.load(first, "steady") as one, world.load(second, "steady") as other:
            for version in ("v2", "v3"):
                await asyncio.gather(one.until(20), other.until(20))
                await world.deploy(version)
            await asyncio.gather(one.until(40), other.until(40))
        found = verdict([one, other], world.seen)
        assert (found.lost, found.doubled) == ([], [])
        for load in (one, other):
            assert load.answered[max(load.answered)] == "v3"


async def test_a_pool_that_shrinks_under_load_loses_nothing(world: World) -> None:
    async with world.router() as router:
        async with world.load(router, "steady", ("raw",)) as few:
            async with world.load(router, "steady", ALL * 2) as many:
                await router.shows("/debug", lambda debug: len(ready("steady")(debug)) == 4)
            await router.shows("/debug", lambda debug: len(ready("steady")(debug)) == 1)
        found = verdict([few, many], world.seen)
        assert (found.lost, found.doubled) == ([], [])


async def test_a_router_that_is_told_to_end_finishes_what_it_has(world: World) -> None:
    async with world.router() as stays, world.router() as goes:
        async with world.load(stays, "steady") as one, world.load(goes, "steady", ALL * 2) as other:
            await other.until(20)
            goes.process.terminate()
            assert await goes.process.wait() == 0
            await one.until(20)
        assert verdict([one], world.seen).lost == []
        found = other.verdict(world.seen, stopping=True)
        assert (found.lost, found.doubled) == ([], [])
