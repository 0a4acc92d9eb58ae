"""Draining, dying, making room: the activator with real sockets between it and small replicas."""

from __future__ import annotations

import asyncio

import pytest

from modalnomad.kit.tasks import Tasks
from modalnomad.model.manifest import Parameter
from modalnomad.model.replica import Failure, PoolKey, ReplicaState
from modalnomad.router import probe
from modalnomad.router.replies import Reply
from modalnomad.settings import RouterSettings
from tests.support.activator import Opener, pool_of, use
from tests.support.stub_replicas import make_match

STEADY_LOOP = True


async def test_a_client_that_leaves_frees_its_ticket_and_the_wake_goes_on(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.1)
    platform.route(match)
    platform.engine.on_start = lambda stub: None
    request = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.engine.stubs)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert platform.activator.load(match.revision.id).waiting == 0
    (stub,) = platform.engine.stubs.values()
    stub.is_ready.set()
    await asyncio.wait_for(stub.drained.wait(), 5)
    assert not platform.engine.killed


async def test_an_idle_replica_is_drained_and_the_next_request_wakes_the_next_epoch(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.05)
    platform.route(match)
    first = await use(platform, match)
    stub = platform.engine.stubs[first.key]
    await stub.drained.wait()
    await platform.feed.replicas.until(lambda found: found[0].state is ReplicaState.DRAINING)
    second = await use(platform, match)  # the drain was sent: the next replica starts
    assert (second.key.number, second.key.epoch) == (1, 1)
    await platform.engine.end(first.key)
    (pool,) = platform.activator.pools()
    await platform.until(lambda: [place.key for place in pool.places] == [second.key])
    assert first.address in platform.forgotten


async def test_one_that_is_suddenly_elsewhere_is_another_one(
    open_platform: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """Nomad starts a lost replica again, and may tell of that before it tells that the machine is lost."""
    platform, match = await open_platform(), make_match(scaledown_window=0.5)
    platform.route(match)
    first = await use(platform, match)
    address = await platform.engine.move(first.key)
    await platform.until(lambda: "died: its machine is lost" in caplog.text)
    assert first.address in platform.forgotten
    second = await use(platform, match)
    assert (second.key, second.address) == (first.key, address)
    assert len(platform.engine.started) == 1
    await asyncio.wait_for(platform.engine.stubs[first.key].drained.wait(), 5)


async def test_one_that_is_suddenly_elsewhere_makes_room(open_platform: Opener) -> None:
    """Its drain goes where it is: at the old address nobody would answer, and who waits for room would wait on."""
    platform = await open_platform()
    idle, waits = make_match(tag="a", host="a.localhost"), make_match(tag="b", host="b.localhost")
    platform.route(idle, waits)
    platform.engine.obedient = True
    lease = await use(platform, idle)
    address = await platform.engine.move(lease.key)
    (pool,) = platform.activator.pools()
    await platform.until(lambda: [place.address for place in pool.places.offered] == [address])
    platform.engine.failure = Failure("no_capacity", "no node has enough left")
    with pytest.raises(Reply) as caught:
        await use(platform, waits)
    assert caught.value.answer.code == "no_capacity"
    assert platform.engine.stubs[lease.key].drained.is_set()


async def test_one_that_is_elsewhere_before_it_is_ready_is_waited_for(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    platform.engine.on_start = lambda stub: None
    request = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.feed.replicas.value)
    platform.engine.on_start = lambda stub: stub.is_ready.set()
    address = await platform.engine.move(platform.engine.started[0])
    assert (await request).address == address
    assert len(platform.engine.started) == 1


async def test_a_refused_drain_leaves_the_replica_in_use(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.5)
    platform.route(match)
    lease = await use(platform, match)
    stub = platform.engine.stubs[lease.key]
    stub.running = 1  # another router's request
    await platform.until(lambda: [path for method, path in stub.asked if method == "POST"])
    # Between its question and the refusal the router counts it as leaving, and would start another.
    await platform.until(lambda: platform.activator.load(match.revision.id).leaving == 0)
    assert (await use(platform, match)).key == lease.key
    assert len(platform.engine.started) == 1


async def test_requests_race_drains_and_none_is_lost(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(scaledown_window=0.01, max_inputs=3)
    platform.route(match)
    ended: list[asyncio.Task[None]] = []

    async def end_when_drained(stub: object) -> None:
        await stub.drained.wait()  # type: ignore[attr-defined]
        await platform.engine.end(stub.key)  # type: ignore[attr-defined]

    async with Tasks("drains") as tasks:

        def start(stub: object) -> None:
            stub.is_ready.set()  # type: ignore[attr-defined]
            ended.append(tasks.spawn(end_when_drained(stub), "drain"))

        platform.engine.on_start = start
        for pause in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03) * 5:
            leases = await asyncio.gather(*(use(platform, match) for _ in range(4)))
            assert all(not platform.engine.stubs[lease.key].drained.is_set() or lease for lease in leases)
            await asyncio.sleep(pause)
        await platform.until(lambda: platform.activator.load(match.revision.id).ready == 0)
    load = platform.activator.load(match.revision.id)
    assert (load.waiting, load.running) == (0, 0)
    assert len(platform.engine.started) > 2, "nothing was ever drained: the race was not run"
    assert len(set(platform.engine.started)) == len(platform.engine.started)


async def test_a_refused_connection_is_a_strike_until_the_replica_answers(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        stub = platform.engine.stubs[lease.key]
        await stub.close()
        lease.gone()
    waiter = asyncio.create_task(use(platform, match))
    await platform.until(lambda: platform.activator.load(match.revision.id).waiting == 1)
    await stub.listen()
    assert (await waiter).key == lease.key
    assert len(platform.engine.started) == 1


async def test_a_dead_replica_is_replaced_for_those_waiting(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        await platform.engine.end(lease.key, Failure("replica_gone", "signal 9"))
        lease.gone()
    again = await use(platform, match)
    assert (again.key.number, again.key.epoch) == (0, 2)


async def test_a_busy_replica_is_offered_again_after_a_moment(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(max_containers=1)
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        lease.refused()
    assert (await use(platform, match)).key == lease.key


async def test_warm_returns_when_ready_and_the_old_revision_finishes_what_it_holds(open_platform: Opener) -> None:
    platform, old, new = await open_platform(), make_match(version=1), make_match(version=2)
    platform.route(old)
    done = asyncio.Event()
    request = asyncio.create_task(use(platform, old, done))
    await platform.until(lambda: platform.activator.load(old.revision.id).running == 1)
    await platform.activator.warm(new.revision, pool_of(new), 2)
    assert platform.activator.load(new.revision.id).ready == 2
    platform.route(new)
    (stub,) = (stub for key, stub in platform.engine.stubs.items() if key.pool == pool_of(old))
    assert (await use(platform, new)).key.pool == pool_of(new)
    assert not stub.drained.is_set()
    done.set()
    assert (await request).key == stub.key
    await asyncio.wait_for(stub.drained.wait(), 5)


async def test_min_containers_start_with_their_route_and_are_greeted(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(min_containers=2, scaledown_window=0.01)
    platform.route(match)
    await platform.until(lambda: platform.activator.load(match.revision.id).ready == 2)
    stub = next(iter(platform.engine.stubs.values()))
    await platform.until(lambda: len(stub.asked) >= 2)
    assert {path for _, path in stub.asked} == {"/.modalnomad/ready"}


async def test_a_single_use_replica_takes_one_request(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match(single_use=True, max_inputs=5)
    platform.route(match)
    leases = [await use(platform, match) for _ in range(3)]
    assert len({lease.key for lease in leases}) == 3
    for lease in leases:
        await asyncio.wait_for(platform.engine.stubs[lease.key].drained.wait(), 5)


async def test_idle_parameter_pools_make_room_for_new_ones(open_platform: Opener) -> None:
    platform = await open_platform(settings=RouterSettings(max_pools=2))
    match = make_match(parameters=(Parameter(name="root", type="str"),))
    platform.route(match)
    keys = [PoolKey(match.revision.id, f'{{"root":"{letter}"}}') for letter in "abc"]
    async with platform.activator.lease(match, keys[0]) as first:
        async with platform.activator.lease(match, keys[1]) as second:
            with pytest.raises(Reply) as caught:
                async with platform.activator.lease(match, keys[2]):
                    raise AssertionError("three pools in use")
        assert (caught.value.answer.status, caught.value.answer.code) == (429, "too_many_pools")
        async with platform.activator.lease(match, keys[2]) as third:
            assert third.key.pool == keys[2]
        await asyncio.wait_for(platform.engine.stubs[second.key].drained.wait(), 5)
    assert not platform.engine.stubs[first.key].drained.is_set()


async def test_when_there_is_no_room_an_idle_pool_gives_way(open_platform: Opener) -> None:
    platform = await open_platform()
    idle, wanted = make_match(tag="f"), make_match(tag="g", host="g.localhost")
    platform.route(idle, wanted)
    lease = await use(platform, idle)
    platform.engine.failure = Failure("no_capacity", "one replica at a time")
    request = asyncio.create_task(use(platform, wanted))
    await asyncio.wait_for(platform.engine.stubs[lease.key].drained.wait(), 5)
    platform.engine.failure = None
    await platform.engine.end(lease.key)
    assert (await request).key.pool == pool_of(wanted)


async def test_a_lease_on_a_dead_replica_strikes_nothing(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        await platform.engine.end(lease.key)
        await platform.until(lambda: platform.activator.load(match.revision.id).ready == 0)
        lease.gone()
        lease.refused()
    assert platform.activator.load(match.revision.id).running == 0


async def test_leases_that_end_after_closing_ask_for_nothing_more(open_platform: Opener) -> None:
    platform, match = await open_platform(), make_match()
    platform.route(match)
    async with platform.activator.lease(match, pool_of(match)) as lease:
        await platform.activator.retire(match.revision.id)
        await platform.activator.close()
        lease.gone()
    assert platform.activator.load(match.revision.id).running == 0
    assert not platform.engine.stubs[lease.key].drained.is_set()


async def test_one_that_does_not_answer_its_drain_is_no_room_to_wait_for(
    open_platform: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "DRAIN_LIMIT", 0.2)
    platform = await open_platform()
    idle, wanted = make_match(tag="f"), make_match(tag="g", host="g.localhost")
    platform.route(idle, wanted)
    lease = await use(platform, idle)
    platform.engine.stubs[lease.key].deaf = True
    platform.engine.failure = Failure("no_capacity", "one replica at a time")
    with pytest.raises(Reply) as caught:
        async with asyncio.timeout(10):  # it is ended when it overstays, after 90
            await use(platform, wanted)
    assert (caught.value.answer.status, caught.value.answer.code) == (503, "no_capacity")
