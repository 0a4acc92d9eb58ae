"""A real Nomad of three servers and two clients under two routers at work: servers that are killed and restarted,
machines that are drained, lost and come back. One router asks the agent of a node, the other one a server."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modalnomad.kit.tasks import Tasks
from tests.support.cluster import Cluster, Router, cluster
from tests.support.load import LATE, Load, Verdict, program, verdict
from tests.support.nomad_agent import nomad_program
from tests.support.nomad_servers import CLIENTS, SERVERS, NomadServers

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),  # servers are restarted one after the other, beside a load
]

ALIVE = frozenset({"pending", "running"})
SITES = 2
"""Replicas of the endpoint under load."""
NUMBERS = itertools.count(1)
"""Of requests that count."""


@dataclass
class World:
    """`by_agent`, `by_server`: routers, by whom they ask."""

    cluster: Cluster
    nomad: NomadServers
    by_agent: Router
    by_server: Router

    @asynccontextmanager
    async def load(self) -> AsyncIterator[list[Load]]:
        """Clients of `site` by both routers, with answers before and after the block."""
        targets = [(host("site"), int(router.url.rpartition(":")[2])) for router in (self.by_agent, self.by_server)]
        async with AsyncExitStack() as stack:
            loads = [Load(partial(_same, target), numbers=NUMBERS, pace=0.05) for target in targets]
            for each in loads:
                await stack.enter_async_context(each)
                await each.until(20)
            yield loads
            for each in loads:
                await each.until(20)

    def verdict(self, loads: list[Load]) -> Verdict:
        """Once they are done."""
        return verdict(loads, self.cluster.folder / "seen")

    async def ask(self, function: str, router: Router | None = None) -> int:
        """The status."""
        return (await (router or self.by_agent).get(host(function)))[0]

    async def wake(self, router: Router) -> int:
        """The status of a request that finds `late` asleep."""
        await self.alive(lambda found: not any("shaken.late." in alloc["JobID"] for alloc in found))
        return await self.ask("late", router)

    async def drained(self, client: str) -> list[dict[str, Any]]:
        """It was emptied, and takes work again → what lives elsewhere now."""
        path = f"/v1/node/{self.nomad.nodes[client]}/drain"
        await self.nomad.calls.put(path, {"DrainSpec": {"Deadline": 60 * 10**9}})
        found = await self.alive(lambda allocs: client not in {alloc["NodeName"] for alloc in allocs})
        await self.nomad.calls.put(path, {"DrainSpec": None, "MarkEligible": True})
        return found

    async def ready(self) -> None:
        """All clients are."""
        await self.nomad.calls.until("/v1/nodes", lambda nodes: {node["Status"] for node in nodes} == {"ready"})

    async def children(self, function: str) -> int:
        """How many were ever dispatched."""
        jobs = await self.nomad.calls.get("/v1/jobs", namespace="*")
        return sum(job["ID"].startswith(f"shaken.{function}.") and "/dispatch-" in job["ID"] for job in jobs)

    async def alive(self, holds: Any) -> list[dict[str, Any]]:
        """Allocations that live, as soon as they are that way."""

        def living(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [alloc for alloc in found if alloc["ClientStatus"] in ALIVE]

        found = await self.nomad.calls.until("/v1/allocations", lambda each: holds(living(each)), namespace="*")
        return living(found)


def _states(debug: Any, function: str) -> list[str]:
    """Of its replicas."""
    return [each["state"] for pool in debug["pools"] if pool["function"] == function for each in pool["replicas"]]


def _same(target: tuple[str, int]) -> tuple[str, int]:
    return target


def host(function: str) -> str:
    """Of an endpoint."""
    return f"shaken-{function}.localhost"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    if nomad_program() is None:
        pytest.skip("nomad is not on PATH")
    folder: Path = tmp_path_factory.mktemp("servers")
    (folder / "seen").mkdir()
    text = program(folder / "seen", "v1", name="shaken", window=600, least=SITES, most=4)
    (folder / "shaken.py").write_text(f"{text}\nGATE = {str(folder / 'gate')!r}\n{LATE}")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        made = await enter(cluster(folder, real=True, several=True, acl=True))
        nomad = made.nomad
        await made.cli("deploy", str(folder / "shaken.py"))
        await enter(made.artifacts())
        followers = [part for part in SERVERS if part != await nomad.leader()]
        own = {"MODALNOMAD_ARTIFACTS__PORT": "0"}
        routers = [
            await enter(made.router(env=own | {"NOMAD_ADDR": where}))
            for where in (nomad.address, nomad.http(followers[0]))
        ]
        found = World(made, nomad, *routers)
        for router in routers:
            status, _ = await router.get(host("site"), f"/?{next(NUMBERS)}")
            assert status == 200
        yield found


async def test_the_leader_is_killed(world: World) -> None:
    leader = await world.nomad.leader()
    async with world.load() as loads:
        await world.nomad.kill(leader)
        async with Tasks("wakes") as tasks:  # while the others elect
            wakes = [tasks.spawn(world.ask("late", each), "wake") for each in (world.by_agent, world.by_server)]
            assert await asyncio.gather(*wakes) == [200, 200]
        assert await world.nomad.leader(but=[leader]) != leader
        world.nomad.launch(leader)
    found = world.verdict(loads)
    assert not found.lost, str(found)
    assert not found.doubled, str(found)


async def test_each_server_is_restarted(world: World) -> None:
    async with world.load() as loads:
        for part in SERVERS:
            await world.nomad.kill(part, signal.SIGTERM)
            world.nomad.launch(part)
            await world.nomad.leader()
            await world.ready()
            assert await world.wake(world.by_agent) == 200
        for router in (world.by_agent, world.by_server):
            await router.shows("/debug", lambda debug: not debug["stale"])
    found = world.verdict(loads)
    assert not found.lost, str(found)
    assert not found.doubled, str(found)


async def test_a_machine_is_drained(world: World) -> None:
    async with world.load() as loads:
        assert len(await world.drained(CLIENTS[0])) >= SITES
    judged = world.verdict(loads)
    assert not judged.lost, str(judged)
    assert not judged.doubled, str(judged)


async def test_what_is_kept_on_a_lost_machine_is_not_started_twice(world: World) -> None:
    """By Nomad, and by routers too, while nobody asks for it."""
    other, lost = CLIENTS
    await world.drained(other)
    ever = await world.children("site")
    await world.nomad.lose_machine(lost)
    found = await world.alive(lambda allocs: {alloc["NodeName"] for alloc in allocs} == {other})
    sites = ["ready" for alloc in found if alloc["JobID"].startswith("shaken.site.")]
    for router in (world.by_agent, world.by_server):
        await router.shows("/debug", lambda debug: _states(debug, "site") == sites)
    assert await world.children("site") == ever
    world.nomad.launch(lost)
    await world.ready()


async def test_a_machine_is_lost_and_comes_back(world: World) -> None:
    """All runs there, and something starts. Lost is what replicas there were at; who waits is answered by others."""
    lost, other = reversed(CLIENTS)
    await world.drained(other)
    gate = world.cluster.folder / "gate"
    gate.touch()
    eligible = f"/v1/node/{world.nomad.nodes[other]}/eligibility"
    await world.nomad.calls.put(eligible, {"Eligibility": "ineligible"})
    async with Tasks("asks") as tasks:
        asked = tasks.spawn(world.ask("held-web"), "waits")
        await world.alive(lambda found: any(a["JobID"].startswith("shaken.Held.") for a in found))
        await world.nomad.calls.put(eligible, {"Eligibility": "eligible"})
        ended = {alloc["ID"] for alloc in await world.alive(lambda found: True)}
        async with world.load() as loads:
            routers = [(each, len(each.errors)) for each in (world.by_agent, world.by_server)]
            await world.nomad.lose_machine(lost)
            for router, before in routers:
                await router.told("its machine", "is lost", after=before)
            known = max(max(load.asked) for load in loads)
            gate.unlink()
            assert await asked == 200
            found = await world.alive(lambda allocs: {a["NodeName"] for a in allocs} == {other})
            assert not ended & {alloc["ID"] for alloc in found}
    judged = world.verdict(loads)
    assert not judged.doubled, str(judged)
    failed = {number for load in loads for number in load.failed}
    assert max(failed, default=0) <= known, str(judged)

    world.nomad.launch(lost)
    await world.ready()
    await world.alive(lambda allocs: {alloc["NodeName"] for alloc in allocs} == {other})
    assert not ended & {alloc["ID"] for alloc in await world.alive(lambda allocs: True)}
    assert await world.ask("held-web") == 200
