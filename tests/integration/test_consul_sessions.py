"""What is held in Consul by whoever is alive: locks, leadership, the presence of routers; registrations of replicas.

Sessions live 0.6 s here, and end 0.9 s after their last renewal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from modalnomad.hashicorp.consul import routers as presences
from modalnomad.hashicorp.consul.leader import Leader
from modalnomad.hashicorp.consul.registrations import Registration, watch_registrations
from modalnomad.hashicorp.consul.routers import RouterInfo, RouterPresence, routers
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendConflict, BackendUnreachable
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Function, Schedule, Source
from modalnomad.model.replica import PoolKey, ReplicaKey, TcpAddress
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import RouteSnapshot
from modalnomad.render.cluster import encode
from modalnomad.router.calls import Call, Outcome
from modalnomad.wiring.cluster_schedules import ClusterSchedules, led_scheduler
from tests.support.consul import Consul, fake_consul, until
from tests.support.engines import IMAGE, within
from tests.support.steady import SteadyLoop

STEADY_LOOP = True
TTL = 0.6
KEY = "modalnomad/locks/drains"


@pytest.fixture
async def consul() -> AsyncIterator[Consul]:
    """Ours, empty; sessions are short."""
    async with fake_consul(ttl_min=TTL) as made:
        yield made


# --- locks ---------------------------------------------------------------------------------------------------


async def test_a_lock_is_kept_longer_than_its_lifetime_and_leaves_nothing(consul: Consul) -> None:
    one, other = consul.discovery(), consul.discovery()
    async with one.lock("deploy", lifetime=2 * TTL):
        (session,) = consul.fake.store.sessions.values()
        begun = session.expires
        await until(lambda: session.expires > begun + 2 * TTL)
        with pytest.raises(BackendConflict, match=r"the lock 'deploy' is held by process \d+ on \S+ since"):
            async with other.lock("deploy", lifetime=TTL):
                pass
        assert list(consul.fake.store.sessions) == [session.id], "who did not get it leaves nothing"

    assert (consul.fake.store.sessions, consul.fake.store.keys, consul.fake.store.delays) == ({}, {}, {})


async def test_whoever_is_cancelled_while_it_holds_a_lock_leaves_nothing(consul: Consul) -> None:
    held = asyncio.Event()

    async def hold() -> None:
        async with consul.discovery().lock("deploy", lifetime=5):
            held.set()
            await asyncio.Event().wait()

    async with Tasks("test") as tasks:
        tasks.spawn(hold(), "hold")
        await within(held.wait(), 5)

    assert (consul.fake.store.sessions, consul.fake.store.keys) == ({}, {})
    async with consul.discovery().lock("deploy", lifetime=5):
        pass


async def test_the_error_of_a_block_passes_a_lock_unchanged(consul: Consul) -> None:
    for error in (TimeoutError("mine"), ValueError("mine")):
        with pytest.raises(type(error), match="mine"):
            async with consul.discovery().lock("deploy", lifetime=5):
                raise error

    assert consul.fake.store.keys == {}


async def test_a_dead_holder_loses_its_lock(consul: Consul) -> None:
    api = consul.api()
    session = await api.create_session("dead", ttl=TTL, lock_delay=1)
    await api.put("modalnomad/locks/deploy", b"process 1", acquire=session)
    await until(lambda: session not in consul.fake.store.sessions)

    async with asyncio.timeout(5), consul.discovery().lock("deploy", lifetime=5):
        pass


async def test_the_holder_of_a_lock_that_is_lost_is_stopped(consul: Consul) -> None:
    store = consul.fake.store

    async def lose() -> None:
        async with consul.discovery().lock("deploy", lifetime=2 * TTL):
            for id in list(store.sessions):
                store.end_session(id)
            await asyncio.Event().wait()

    with pytest.raises(BackendConflict, match="the lock 'deploy' was lost: Consul ended its session"):
        await within(lose(), 5)


async def test_the_holder_of_a_lock_is_stopped_before_another_may_get_it(consul: Consul) -> None:
    left: list[str] = []

    async def lose() -> None:
        async with consul.discovery().lock("deploy", lifetime=2 * TTL):
            await consul.fake.go()
            try:
                await asyncio.Event().wait()
            finally:
                left.extend(consul.fake.store.sessions)

    with pytest.raises(BackendConflict, match=r"was lost: Consul did not confirm it for 0\.6 s"):
        await within(lose(), 5)
    assert left, "it was still nobody else's"


async def test_a_lock_cannot_be_had_while_consul_is_gone(consul: Consul) -> None:
    async with consul.fake.gone():
        with pytest.raises(BackendUnreachable):
            async with consul.discovery().lock("deploy", lifetime=5):
                pass


# --- leader --------------------------------------------------------------------------------------------------


async def test_of_two_one_leads_and_the_other_follows_at_once(consul: Consul) -> None:
    one, other = Leader(consul.api(), KEY, ttl=TTL), Leader(consul.api(), KEY, ttl=TTL)
    async with Tasks("other") as others:
        async with Tasks("one") as tasks:
            tasks.spawn(one.run(), "run")
            await until(lambda: one.held)
            others.spawn(other.run(), "run")
            await until(lambda: consul.fake.waiting == 2)
            assert (one.held, other.held) == (True, False)
        assert not one.held
        await until(lambda: other.held, 0.9)
    assert (consul.fake.store.sessions, consul.fake.store.keys) == ({}, {})


async def test_a_leader_that_cannot_ask_consul_leads_no_longer(consul: Consul) -> None:
    leader = Leader(consul.api(), KEY, ttl=TTL)
    async with Tasks("test") as tasks:
        tasks.spawn(leader.run(), "run")
        await until(lambda: leader.held)
        async with consul.fake.gone():
            await until(lambda: not leader.held)
            assert consul.fake.store.sessions, "not yet anybody else's"
        await until(lambda: leader.held)


async def test_a_leader_whose_key_is_taken_leads_no_longer(consul: Consul) -> None:
    leader = Leader(consul.api(), KEY, ttl=TTL)
    async with Tasks("test") as tasks:
        tasks.spawn(leader.run(), "run")
        await until(lambda: leader.held)
        consul.fake.store.put(KEY, b"", session="")
        consul.fake.store.delays[KEY] = float("inf")
        await until(lambda: not leader.held)
        consul.fake.store.delays.clear()
        await until(lambda: leader.held)


async def test_work_of_a_leader_runs_while_it_leads(consul: Consul) -> None:
    leader = Leader(consul.api(), KEY, ttl=TTL)
    running = 0

    async def work() -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    async with Tasks("test") as tasks:
        tasks.spawn(leader.while_held(work), "work")
        tasks.spawn(leader.run(), "run")
        await until(lambda: running == 1)
        async with consul.fake.gone():
            await until(lambda: running == 0)
            assert not leader.held
        await until(lambda: running == 1)
    assert running == 0


async def test_work_of_a_leader_that_fails_is_told() -> None:
    async def work() -> None:
        raise ValueError("broken")

    async with fake_consul(ttl_min=TTL) as consul, Tasks("test") as tasks:
        leader = Leader(consul.api(), KEY, ttl=TTL)
        tasks.spawn(leader.run(), "run")
        with pytest.raises(ValueError, match="broken"):
            await within(leader.while_held(work), 5)


class Runs:
    """Whom schedules call: whether the leader was certain that it led, at each run."""

    def __init__(self, leader: Leader, due: float) -> None:
        self.leader = leader
        self.certain: list[bool] = []
        self.snapshots = Cell(scheduled(due))

    def watch(self) -> AsyncIterator[RouteSnapshot]:
        return self.snapshots.watch()

    async def call(self, call: Call, on_retry: object = None) -> Outcome:
        self.certain.append(self.leader.held)
        return Outcome("result", b"")


def scheduled(due: float) -> RouteSnapshot:
    """One Function that runs each hour, next at this Unix time."""
    made = Revision.make(
        app="app",
        environment="main",
        function=Function(tag="f", schedule=Schedule(kind="period", period={"hours": 1})),
        source=Source(mode="script", entry="app.py", root="/x", module="app"),
        bundle=IMAGE,
        image=BuiltImage(digest=IMAGE, python="3.11"),
    )
    return RouteSnapshot(revisions={made.id: made}, deployed_at={made.id: due - 3600})


async def test_a_leader_that_was_stopped_for_a_while_runs_no_schedule_that_may_be_another_s(consul: Consul) -> None:
    leader = Leader(consul.api(), KEY, ttl=TTL)
    runs = Runs(leader, time.time() + 3600)
    schedules = ClusterSchedules(consul.api(), "modalnomad")
    scheduler = led_scheduler(leader, runs, runs, schedules)  # type: ignore[arg-type]
    scheduler._wall, scheduler._steady = time.time, time.monotonic  # as this loop shows them
    async with Tasks("test") as tasks:
        tasks.spawn(leader.while_held(scheduler.run), "work")
        tasks.spawn(leader.run(), "run")
        await until(lambda: scheduler.due)
        due = time.time() + 0.8
        runs.snapshots.set(scheduled(due))
        await until(lambda: min(scheduler.due.values()) < due + 1)
        assert runs.certain == []
        clock = asyncio.get_running_loop()
        assert isinstance(clock, SteadyLoop)
        clock.skip(2 * TTL)  # as SIGSTOP does
        assert not leader.held, "by the clock alone"

        await until(lambda: runs.certain)
        assert runs.certain == [True]


# --- presence ------------------------------------------------------------------------------------------------


def info(serial: int = 1) -> RouterInfo:
    return RouterInfo(
        name="r1", port=8700, tls=False, serials={"main/a": serial}, version="0.1", environment="", started_at=5.0
    )


async def test_a_router_is_there_with_what_it_serves_until_it_closes(consul: Consul) -> None:
    presence = RouterPresence(consul.api(), "modalnomad", "r1", ttl=TTL)
    api = consul.api()
    assert await routers(api, "modalnomad") == ()
    for serial in (1, 2):
        await presence.tell(info(serial))
        await until_routers(api, [info(serial)])

    await presence.close()

    assert await routers(api, "modalnomad") == ()
    assert consul.fake.store.sessions == {}
    await presence.close()


async def test_a_router_that_told_nothing_closes(consul: Consul) -> None:
    await RouterPresence(consul.api(), "modalnomad", "r1").close()

    assert consul.fake.requests == []


async def test_a_router_that_died_is_gone_after_a_while(consul: Consul) -> None:
    api = consul.api()
    presence = RouterPresence(consul.api(), "modalnomad", "r1", ttl=TTL)
    await presence.tell(info())
    await until_routers(api, [info()])
    with consul.fake.hanging("/v1/session/"):
        await until_routers(api, [])

    await until_routers(api, [info()])
    await presence.close()


async def test_a_presence_that_is_lost_is_told_anew(consul: Consul) -> None:
    api = consul.api()
    presence = RouterPresence(consul.api(), "modalnomad", "r1", ttl=TTL)
    async with consul.fake.gone():
        await presence.tell(info())
    await until_routers(api, [info()])
    for id in list(consul.fake.store.sessions):
        consul.fake.store.end_session(id)

    await until_routers(api, [info()])
    await presence.close()


async def test_a_presence_that_somebody_removed_is_told_anew(consul: Consul, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presences, "LOOK", 0.05)
    presence = RouterPresence(consul.api(), "modalnomad", "r1", ttl=TTL)
    await presence.tell(info())
    await until_routers(consul.api(), [info()])
    consul.fake.store.delete("modalnomad/routers/r1")

    await until_routers(consul.api(), [info()])
    await presence.close()


async def test_what_is_no_router_is_left_out(consul: Consul) -> None:
    api = consul.api()
    session = await api.create_session("x", ttl=10, lock_delay=0)
    for name, value in (("a", b"oops"), ("b", b'{"format": 2, "router": {}}'), ("c", b'{"format":1,"router":null}')):
        await api.put(f"modalnomad/routers/{name}", value, acquire=session)

    assert await routers(api, "modalnomad") == ()


async def until_routers(api: Any, wanted: list[RouterInfo]) -> None:
    async with asyncio.timeout(10):
        while list(await routers(api, "modalnomad")) != wanted:  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.01)


# --- registrations -------------------------------------------------------------------------------------------

POOL = PoolKey(RevisionId("a" * 32), '{"n":1}')


def service(number: int, **changes: Any) -> dict[str, Any]:
    key = ReplicaKey(POOL, number, 1)
    meta = {
        "pool": str(POOL),
        "number": str(number),
        "epoch": "1",
        "parameters": encode(POOL.parameters),
        "revision": str(POOL.revision),
        "alloc": f"alloc-{number}",
        "max_inputs": "4",
    }
    check = {"CheckID": f"c{key}", "Name": "ready", "TTL": "10s"}
    base = {"ID": str(key), "Name": "modalnomad-replica", "Address": "10.0.0.1", "Port": 20000 + number, "Meta": meta}
    return {**base, "Checks": [check], **changes}


def registered(number: int, passing: bool = False) -> Registration:
    key = ReplicaKey(POOL, number, 1)
    return Registration(
        key, f"alloc-{number}", TcpAddress("10.0.0.1", 20000 + number), passing, 4, str(key), "fake-consul"
    )


async def test_registrations_are_whole_snapshots_of_what_is_registered_and_passes(consul: Consul) -> None:
    agent = consul.fake.agent
    async with aclosing(watch_registrations(consul.api())) as watch:  # type: ignore[type-var]
        assert await within(anext(watch), 5) == ()
        agent.register(service(0))
        assert await within(anext(watch), 5) == (registered(0),)
        agent.update(f"c{registered(0).key}", "passing", "")
        assert await within(anext(watch), 5) == (registered(0, True),)
        agent.register(service(1))
        assert await within(anext(watch), 5) == (registered(0, True), registered(1))
        for number in (0, 1):
            agent.deregister(str(registered(number).key))
        seen = await within(anext(watch), 5)
        assert seen in {(), (registered(1),)}
        if seen:
            assert await within(anext(watch), 5) == ()


@pytest.mark.parametrize(
    "changes",
    [{"Meta": {}}, {"Meta": {"pool": "x", "number": "0", "epoch": "1", "revision": "y"}}, {"Port": 0}],
    ids=["no Meta", "another pool", "no port"],
)
async def test_what_is_no_replica_is_left_out(consul: Consul, changes: dict[str, Any]) -> None:
    consul.fake.agent.register(service(0, **changes))
    consul.fake.agent.register(service(1))
    async with aclosing(watch_registrations(consul.api())) as watch:  # type: ignore[type-var]
        assert await within(anext(watch), 5) == (registered(1),)


async def test_registrations_stay_while_consul_is_gone_or_wrong(consul: Consul) -> None:
    fake = consul.fake
    fake.agent.register(service(0))
    doubts: list[str] = []
    async with aclosing(watch_registrations(consul.api(), on_doubt=doubts.append)) as watch:  # type: ignore[type-var]
        assert await within(anext(watch), 5) == (registered(0),)
        fake.fail(2, path="/v1/health/")
        fake.empty(2, path="/v1/health/")
        fake.empty(1, path="/v1/health/", index=3)
        async with fake.gone():
            pass
        fake.agent.register(service(1))

        assert await within(anext(watch), 20) == (registered(0), registered(1))
    assert len(doubts) >= 5


async def test_registrations_stay_when_a_token_may_no_longer_see_them() -> None:
    """What waits is answered from a stream, which leaves them out without a word."""
    async with fake_consul(acl=True) as consul:
        fake, doubts = consul.fake, list[str]()
        api = consul.api(
            fake.token('service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }', "router")
        )
        (policy,) = [one for one in fake.acl.policies.values() if one["Name"] == "router"]
        fake.agent.register(service(0))
        async with aclosing(watch_registrations(api, on_doubt=doubts.append)) as watch:  # type: ignore[type-var]
            assert await within(anext(watch), 5) == (registered(0),)
            rules, policy["Rules"] = policy["Rules"], ""
            waiting = asyncio.ensure_future(anext(watch))
            fake.agent.update(f"c{registered(0).key}", "passing", "")
            await until(lambda: doubts)
            policy["Rules"] = rules

            assert await within(waiting, 20) == (registered(0, True),)
        assert "its token may not read all of it" in doubts


async def test_a_catalog_that_lost_everything_is_believed_when_it_insists(consul: Consul) -> None:
    fake = consul.fake
    fake.agent.register(service(0))
    async with aclosing(watch_registrations(consul.api(), reconcile=0.3)) as watch:  # type: ignore[type-var]
        assert await within(anext(watch), 5) == (registered(0),)
        fake.empty(float("inf"), path="/v1/health/", index=3)

        assert await within(anext(watch), 20) == ()
