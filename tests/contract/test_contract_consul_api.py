"""What the client relies on in Consul: held on the fake one, and on a real agent where `consul` is on PATH."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from modalnomad.hashicorp.consul.api import ConsulApi, Op, TxnRefused
from modalnomad.hashicorp.http import ServerRefused
from tests.support.consul import CONSULS, Consul, consul_for_test, until
from tests.support.engines import within


@pytest.fixture(params=CONSULS)
async def consul(request: pytest.FixtureRequest) -> AsyncIterator[Consul]:
    """Of each kind, empty."""
    async with consul_for_test(request.param) as made:
        yield made


@pytest.fixture
def api(consul: Consul) -> ConsulApi:
    """A client."""
    return consul.api()


async def test_a_key_is_put_read_and_deleted(api: ConsulApi) -> None:
    assert await api.put("t/a", b"\x00one\xff")

    found = await api.get("t/a")
    assert [(entry.key, entry.value) for entry in found.items] == [("t/a", b"\x00one\xff")]
    assert found.index == found.items[0].index > 0

    await api.delete("t/a")
    assert (await api.get("t/a")).items == ()


async def test_an_absent_key_has_an_index_to_wait_from(api: ConsulApi) -> None:
    found = await api.get("t/none")

    assert found.items == ()
    assert found.index >= 1


async def test_an_empty_value_is_empty(api: ConsulApi) -> None:
    await api.put("t/a", b"")

    assert (await api.get("t/a")).items[0].value == b""


async def test_a_tree_has_all_below_a_prefix_and_its_highest_index(api: ConsulApi) -> None:
    for key in ("t/b", "t/a/x", "u/c"):
        await api.put(key, key.encode())

    found = await api.tree("t/")

    assert [entry.key for entry in found.items] == ["t/a/x", "t/b"]
    assert found.index == max(entry.index for entry in found.items)


async def test_cas_replaces_only_what_was_read(api: ConsulApi) -> None:
    assert await api.put("t/a", b"1", cas=0)
    assert not await api.put("t/a", b"2", cas=0)
    index = (await api.get("t/a")).index

    assert await api.put("t/a", b"2", cas=index)
    assert not await api.put("t/a", b"3", cas=index)
    assert (await api.get("t/a")).items[0].value == b"2"


async def test_an_equal_value_is_no_change(api: ConsulApi) -> None:
    await api.put("t/a", b"1")
    before = await api.get("t/a")

    assert await api.put("t/a", b"1", cas=before.index)
    await api.txn([Op("cas", "t/a", b"1", before.index)])
    assert await api.get("t/a") == before


async def test_a_blocking_query_waits_for_a_change_of_its_key(api: ConsulApi) -> None:
    await api.put("t/a", b"1")
    before = await api.get("t/a")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(api.get("t/a", index=before.index))
        await api.put("t/other", b"x")
        await api.put("t/a", b"2")

    assert waiting.result().items[0].value == b"2"
    assert waiting.result().index > before.index


async def test_a_blocking_query_for_an_absent_key_waits_for_that_key(consul: Consul, api: ConsulApi) -> None:
    await api.put("u/other", b"0")
    index = (await api.get("t/a")).index
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(api.get("t/a", index=index))
        await (asyncio.sleep(0.2) if consul.own is None else until(lambda: consul.fake.waiting))
        await api.put("u/other", b"1")
        assert (await api.get("u/other")).index > index
        await api.put("t/a", b"1")

    assert [entry.value for entry in waiting.result().items] == [b"1"]


async def test_a_blocking_query_on_a_tree_sees_puts_and_deletions(api: ConsulApi) -> None:
    await api.put("t/a", b"1")
    await api.put("t/b", b"1")
    index = (await api.tree("t/")).index
    for change in (api.put("t/c", b"1"), api.delete("t/a")):
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(api.tree("t/", index=index))
            group.create_task(change)
        assert waiting.result().index > index
        index = waiting.result().index

    assert [entry.key for entry in waiting.result().items] == ["t/b", "t/c"]


async def test_the_deletion_of_all_is_told_at_a_later_index(api: ConsulApi) -> None:
    await api.put("t/a", b"1")
    before = await api.tree("t/")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(api.tree("t/", index=before.index))
        group.create_task(api.delete("t/a"))

    assert waiting.result().items == ()
    assert waiting.result().index > before.index


async def test_a_blocking_query_ends_after_its_wait(api: ConsulApi) -> None:
    await api.put("t/a", b"1")
    before = await api.get("t/a")

    assert await within(api.get("t/a", index=before.index, wait=1)) == before


async def test_a_transaction_does_all_at_one_index(api: ConsulApi) -> None:
    await api.txn([Op("cas", "t/a", b"1", 0), Op("set", "t/b", b"2")])

    found = (await api.tree("t/")).items
    assert [entry.value for entry in found] == [b"1", b"2"]
    assert found[0].index == found[1].index


async def test_a_transaction_that_cannot_do_all_does_nothing(api: ConsulApi) -> None:
    await api.put("t/a", b"1")

    with pytest.raises(TxnRefused, match='failed to set key "t/a", index is stale') as refused:
        await api.txn([Op("set", "t/b", b"2"), Op("cas", "t/a", b"2", 0)])

    assert refused.value.failed == (1,)
    assert [entry.key for entry in (await api.tree("t/")).items] == ["t/a"]


async def test_more_than_128_operations_are_refused(api: ConsulApi) -> None:
    with pytest.raises(ServerRefused, match=r"too many operations \(129 > 128\)") as refused:
        await api.txn([Op("set", f"t/{n}", b"") for n in range(129)])

    assert refused.value.status == 413


async def test_a_value_over_512_kib_is_refused(api: ConsulApi) -> None:
    with pytest.raises(ServerRefused, match="too large, max size: 524288 bytes") as refused:
        await api.put("t/a", b"x" * (512 * 1024 + 1))

    assert refused.value.status == 413


async def test_a_lock_has_one_session(api: ConsulApi) -> None:
    one, other = [await api.create_session(name, ttl=10, lock_delay=0) for name in ("one", "other")]

    assert await api.put("t/lock", b"one", acquire=one)
    assert await api.put("t/lock", b"again", acquire=one)
    assert not await api.put("t/lock", b"other", acquire=other)
    assert (await api.get("t/lock")).items[0].session == one


async def test_the_end_of_a_session_removes_what_it_held(api: ConsulApi) -> None:
    one = await api.create_session("one", ttl=10, lock_delay=0)
    other = await api.create_session("other", ttl=10, lock_delay=0)
    await api.put("t/lock", b"one", acquire=one)
    before = await api.get("t/lock")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(api.get("t/lock", index=before.index))
        group.create_task(api.end_session(one))

    assert waiting.result().items == ()
    assert await api.put("t/lock", b"other", acquire=other)
    assert not await api.renew_session(one)
    assert await api.renew_session(other)


async def test_all_that_a_session_held_goes_at_one_index(api: ConsulApi) -> None:
    session = await api.create_session("one", ttl=10, lock_delay=0)
    for key in ("t/a", "t/b"):
        await api.put(key, b"", acquire=session)
    before = await api.tree("t/")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(api.tree("t/", index=before.index))
        group.create_task(api.end_session(session))

    assert waiting.result().items == ()
    assert waiting.result().index == (await api.tree("t/")).index


async def test_a_lock_delay_holds_others_off_only_without_a_release(api: ConsulApi) -> None:
    sessions = [await api.create_session(f"s{n}", ttl=10, lock_delay=1) for n in range(3)]
    await api.put("t/lock", b"", acquire=sessions[0])
    await api.txn([Op("check-session", "t/lock", session=sessions[0]), Op("delete", "t/lock")])
    assert await api.put("t/lock", b"", acquire=sessions[1]), "released: free at once"

    await api.end_session(sessions[1])

    assert not await api.put("t/lock", b"", acquire=sessions[2])
    tries = 0
    while not await api.put("t/lock", b"", acquire=sessions[2]):
        tries += 1
        assert tries < 100
        await asyncio.sleep(0.1)


async def test_an_unknown_session_gets_no_lock(api: ConsulApi) -> None:
    with pytest.raises(ServerRefused, match="invalid session"):
        await api.put("t/lock", b"", acquire="11111111-1111-1111-1111-111111111111")


async def test_a_session_has_a_least_ttl(api: ConsulApi) -> None:
    with pytest.raises(ServerRefused, match="must be between"):
        await api.create_session("short", ttl=1, lock_delay=0)


async def test_the_agent_tells_its_version(api: ConsulApi) -> None:
    about = await api.agent()

    assert about["Config"]["Version"]
    assert await api.leader()


async def test_a_service_is_seen_when_its_check_passes_and_until_it_goes(consul: Consul, api: ConsulApi) -> None:
    statuses = iter([503, 200])
    last = 503

    async def ready(request: web.Request) -> web.Response:
        nonlocal last
        last = next(statuses, last)
        return web.Response(status=last)

    app = web.Application()
    app.router.add_get("/ready", ready)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    body = {
        "ID": "one",
        "Name": "svc",
        "Address": "127.0.0.1",
        "Port": port,
        "Meta": {"pool": "p"},
        "Checks": [{"CheckID": "c1", "Name": "ready", "HTTP": f"http://127.0.0.1:{port}/ready", "Interval": "1s"}],
    }
    before = await api.service("svc")
    async with aiohttp.ClientSession(consul.address) as http:
        async with http.put("/v1/agent/service/register", json=body) as answer:
            assert answer.status == 200
        seen = await until_service(api, before.index, passing=False, count=1)
        assert (seen["Service"]["Meta"], seen["Service"]["Port"]) == ({"pool": "p"}, port)
        passed = await until_service(api, 0, passing=True, count=1)
        assert {check["CheckID"]: check["Status"] for check in passed["Checks"]}["c1"] == "passing"
        async with http.put("/v1/agent/service/deregister/one") as answer:
            assert answer.status == 200
        async with http.put("/v1/agent/service/deregister/one") as answer:
            assert (answer.status, (await answer.text()).split(".")[0]) == (404, 'Unknown service ID "one"')
    await until_service(api, 0, passing=False, count=0)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        ({"a": "x" * 513}, "Value is too long (limit: 512 characters)"),
        ({"a.b": ""}, "Key contains invalid characters"),
        ({str(number): "" for number in range(65)}, "cannot contain more than 64 key/value pairs"),
    ],
)
async def test_a_service_tells_only_so_much_of_itself(consul: Consul, meta: dict[str, str], why: str) -> None:
    async with (
        aiohttp.ClientSession(consul.address) as http,
        http.put("/v1/agent/service/register", json={"Name": "svc", "Meta": meta}) as answer,
    ):
        assert answer.status == 400
        assert why in await answer.text()


async def until_service(api: ConsulApi, index: int, *, passing: bool, count: int) -> dict[str, Any]:
    """The first of so many instances, as soon as there are so many."""
    async with asyncio.timeout(20):
        while True:
            found = await api.service("svc", index=index, passing=passing)
            if len(found.items) == count:
                return found.items[0] if found.items else {}
            index = found.index
