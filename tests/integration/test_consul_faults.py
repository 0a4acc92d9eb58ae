"""What routers serve while Consul is away, wrong, or lies; and what becomes of a write then."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from modalnomad.hashicorp.consul import following
from modalnomad.hashicorp.consul.api import ConsulApi, Entry, Found, Op
from modalnomad.hashicorp.consul.cache import Cache, Table
from modalnomad.hashicorp.consul.discovery import ConsulDiscovery
from modalnomad.hashicorp.consul.records import encode
from modalnomad.hashicorp.http import ServerRefused
from modalnomad.model.errors import BackendConflict, BackendRefused, BackendUnreachable
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import DeleteToken, PublishApp, PutToken, WithdrawApp
from tests.support.consul import PREFIX, Consul, app_record, fake_consul, publish, until, watching
from tests.support.engines import within
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.consul_state import Store

STEADY_LOOP = True
ROUTER = 'key_prefix "modalnomad/" { policy = "read" }'
TREE = "/v1/kv/modalnomad/"


@pytest.fixture
async def consul() -> AsyncIterator[Consul]:
    """Ours, empty; sessions may be short."""
    async with fake_consul(ttl_min=0.3) as made:
        yield made


async def test_what_was_seen_stays_while_consul_is_gone(consul: Consul) -> None:
    discovery = consul.discovery()
    async with watching(discovery) as watcher:
        await publish(discovery, "a", "b")
        await watcher.until("a", "b")
        assert discovery.stale_since is None
        before = time.time()

        async with consul.fake.gone():
            await until(lambda: discovery.stale_since is not None)
            assert before <= (discovery.stale_since or 0) <= time.time()
            with pytest.raises(BackendUnreachable, match="Consul at http://127"):
                await discovery.apps()
        await until(lambda: discovery.stale_since is None)
        await publish(discovery, "c")
        await watcher.until("a", "b", "c")

    assert watcher.all == sorted(watcher.all), "nothing was ever lost from the table"


def touch(consul: Consul) -> None:
    """Whoever waits asks again."""
    consul.fake.store.put("modalnomad/apps/_guard", secrets.token_bytes(8))


def no_leader(fake: FakeConsul) -> None:
    fake.fail(3, path=TREE, text="No cluster leader")


def bad_gateway(fake: FakeConsul) -> None:
    fake.fail(3, path=TREE, status=502, text="<html>Bad Gateway</html>")


def empty_list(fake: FakeConsul) -> None:
    fake.empty(3, path=TREE)


def empty_list_of_the_future(fake: FakeConsul) -> None:
    fake.empty(3, path=TREE, index=10**9)


def empty_body(fake: FakeConsul) -> None:
    fake.empty(3, path=TREE, body="")


def not_json(fake: FakeConsul) -> None:
    fake.empty(3, path=TREE, body="<html>hello</html>")


def not_found_by_a_proxy(fake: FakeConsul) -> None:
    fake.fail(3, path=TREE, status=404, text="404 page not found")


def an_empty_past(fake: FakeConsul) -> None:
    fake.older(Store(), 3, path=TREE)


def forbidden(fake: FakeConsul) -> None:
    fake.fail(3, path=TREE, status=403, text="rpc error: Permission denied")


LIES = [
    no_leader,
    bad_gateway,
    empty_list,
    empty_list_of_the_future,
    empty_body,
    not_json,
    not_found_by_a_proxy,
    an_empty_past,
    forbidden,
]


@pytest.mark.parametrize("lie", LIES)
async def test_no_wrong_answer_empties_the_table(
    consul: Consul, lie: Callable[[FakeConsul], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "pause_after", lambda failures: 0.1)  # long enough to be seen
    discovery = consul.discovery()
    async with watching(discovery) as watcher:
        await publish(discovery, "a")
        await watcher.until("a")
        lie(consul.fake)
        touch(consul)
        await until(lambda: discovery.stale_since is not None)
        await until(lambda: discovery.stale_since is None)
        await publish(discovery, "b")
        await watcher.until("a", "b")

    assert watcher.all in ([[], ["a"], ["a", "b"]], [["a"], ["a", "b"]])


async def test_a_proxy_that_answers_itself_is_none_of_consul_s(consul: Consul) -> None:
    consul.fake.fail(2, path=TREE, status=404, text="404 page not found")
    with pytest.raises(BackendRefused, match="that is none of Consul's: the header X-Consul-Index is missing") as told:
        await consul.discovery().apps()

    assert "CONSUL_HTTP_ADDR (consul.address)" in (told.value.hint or "")


async def test_no_index_makes_the_next_query_one_that_does_not_wait(consul: Consul) -> None:
    consul.fake.empty(path="/v1/health/", index=0)

    assert (await consul.api().service("svc")).index == 1


async def test_an_older_answer_is_not_taken(consul: Consul) -> None:
    discovery = consul.discovery()
    async with watching(discovery) as watcher:
        await publish(discovery, "a")
        past = consul.fake.snapshot()
        await publish(discovery, "b")
        await watcher.until("a", "b")
        fault = consul.fake.older(past, 4, path=TREE)
        touch(consul)
        await until(lambda: fault.times == 0 and discovery.stale_since is None)

    assert watcher.apps == ["a", "b"]
    assert watcher.all[-1] == ["a", "b"]
    assert ["a"] not in watcher.all[watcher.all.index(["a", "b"]) :]


async def test_servers_restored_from_a_copy_are_believed_when_they_insist(consul: Consul) -> None:
    discovery = consul.discovery(reconcile=0.5)
    async with watching(discovery) as watcher:
        await publish(discovery, "a")
        past = consul.fake.snapshot()
        await publish(discovery, "b")
        await watcher.until("a", "b")
        consul.fake.older(past, float("inf"), path=TREE)
        touch(consul)

        await watcher.until("a")


async def test_servers_that_lost_everything_are_not_believed(
    consul: Consul, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "pause_after", lambda failures: 0.1)
    discovery = consul.discovery(reconcile=0.2)
    async with watching(discovery) as watcher:
        await publish(discovery, "a")
        await watcher.until("a")
        fault = consul.fake.older(Store(), 12, path=f"{TREE}apps/")
        touch(consul)
        await until(lambda: fault.times <= 4, 30)

        assert watcher.apps == ["a"]
        assert discovery.stale_since is not None
    assert "its index went backwards" in caplog.text


async def test_the_deletion_of_everything_is_followed(consul: Consul) -> None:
    discovery = consul.discovery()
    async with watching(discovery) as watcher:
        await publish(discovery, "a", "b")
        await watcher.until("a", "b")

        consul.fake.store.delete_tree("modalnomad/")
        await watcher.until()

        await publish(discovery, "c")
        await watcher.until("c")
    assert discovery.stale_since is None


async def test_an_index_that_falls_because_removals_are_forgotten_is_followed(consul: Consul) -> None:
    discovery = consul.discovery()
    async with watching(discovery) as watcher:
        await publish(discovery, "a", "b")
        await discovery.publish(WithdrawApp("b", "main"))
        await watcher.until("a")
        consul.fake.store.reap()
        consul.fake.store.put("modalnomad/unrelated", b"")

        await publish(discovery, "c")
        await watcher.until("a", "c")


async def test_a_token_that_loses_its_rights_empties_nothing() -> None:
    async with fake_consul(acl=True) as consul:
        token = consul.fake.token(ROUTER, "router")
        deployer = consul.discovery(token=consul.fake.management)
        discovery = consul.discovery(token=token)
        async with watching(discovery) as watcher:
            await publish(deployer, "a", "b")
            await watcher.until("a", "b")
            with pytest.raises(ServerRefused, match="lacks permission 'key:write'") as refused:
                await publish(discovery, "c")
            assert refused.value.status == 403
            policy = next(one for one in consul.fake.acl.policies.values() if one["Name"] == "router")
            for rules in ("", 'key_prefix "modalnomad/apps/main/a" { policy = "read" }'):
                policy["Rules"] = rules
                touch(consul)
                await until(lambda: discovery.stale_since is not None)
                with pytest.raises(BackendRefused, match=r"only a part of the keys|Permission denied"):
                    await discovery.apps()
                policy["Rules"] = ROUTER
                await until(lambda: discovery.stale_since is None)

            consul.fake.acl.tokens.pop(token)
            touch(consul)
            await until(lambda: discovery.stale_since is not None)
            assert watcher.apps == ["a", "b"]


async def test_a_router_without_a_token_serves_its_last_table_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To who shows no token Consul leaves everything out, and does not say so."""
    async with fake_consul(acl=True) as consul:
        path, token = tmp_path / "routes.json", consul.fake.token(ROUTER, "router")
        async with watching(consul.discovery(token=token, cache=path)) as watcher:
            await publish(consul.discovery(token=consul.fake.management), "a")
            await watcher.until("a")
            await until(lambda: path.exists() and b"main/a" in path.read_bytes())

        discovery = consul.discovery(cache=path)
        async with watching(discovery) as watcher:
            await watcher.until("a")
            await until(lambda: "anonymous token lacks permission 'key:read'" in caplog.text)
            assert discovery.stale_since is not None
        assert watcher.all == [["a"]]


# --- what is kept on disk ------------------------------------------------------------------------------------


@pytest.fixture
async def kept(consul: Consul, tmp_path: Path) -> Path:
    """The file a router left that had seen the Apps a and b and a token."""
    path = tmp_path / "home" / "cluster" / "routes.json"
    discovery = consul.discovery(cache=path)
    async with watching(discovery) as watcher:
        await publish(discovery, "a", "b")
        await discovery.publish(PutToken(Token(id="wk-1", secret_sha256="5" * 64, environment="main")))
        await watcher.until("a", "b")
        await until(lambda: path.exists() and b"wk-1" in path.read_bytes() and b"main/b" in path.read_bytes())
        await all_saved(discovery)
    return path


async def all_saved(discovery: ConsulDiscovery) -> None:
    """Returns when it has kept all it saw: a thread that writes goes on when its watch ends."""
    async with discovery._saving:
        return


def saved_at(kept: Path) -> float:
    """When the file says it was right."""
    return float(json.loads(kept.read_text())["saved_at"])


async def test_a_router_that_starts_while_consul_is_gone_serves_the_last_table(consul: Consul, kept: Path) -> None:
    saved = saved_at(kept)
    discovery = consul.discovery(cache=kept)
    await consul.fake.go()
    async with watching(discovery) as watcher:
        snapshot = await watcher.until("a", "b", limit=2)

        assert discovery.stale_since == saved
        assert [token.id for token in snapshot.tokens] == ["wk-1"]
        await consul.fake.come_back()
        await until(lambda: discovery.stale_since is None)
        await publish(discovery, "c")
        await watcher.until("a", "b", "c")
    assert [] not in watcher.all


async def test_a_router_that_starts_while_consul_hangs_serves_the_last_table(consul: Consul, kept: Path) -> None:
    discovery = consul.discovery(cache=kept)
    with consul.fake.hanging():
        async with watching(discovery) as watcher:
            await watcher.until("a", "b", limit=6)
            assert discovery.stale_since is not None


async def test_without_a_table_a_router_waits_for_consul(consul: Consul, tmp_path: Path) -> None:
    discovery = consul.discovery(cache=tmp_path / "none.json")
    await publish(discovery, "a")
    await consul.fake.go()
    async with watching(discovery) as watcher:
        await until(lambda: discovery.stale_since is not None)
        assert watcher.all == []
        await consul.fake.come_back()
        await watcher.until("a")
    assert watcher.all == [["a"]]


def test_the_table_on_disk_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "cluster" / "routes.json"
    cache = Cache(path, "modalnomad")
    table = Table(Found((Entry("modalnomad/apps/main/a", b"1", 7),), 7), (Entry("modalnomad/apps/main/a", b"0", 5),))
    cache.save({"apps": table})

    assert cache.load()[0] == {"apps": table}
    assert Cache(path, "other").load() == ({}, 0.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["routes.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 2}', b'{"format": 1, "prefix": "modalnomad"}'])
async def test_a_damaged_table_on_disk_is_done_without_and_replaced(consul: Consul, kept: Path, content: bytes) -> None:
    await asyncio.to_thread(kept.write_bytes, content)
    discovery = consul.discovery(cache=kept)
    async with watching(discovery) as watcher:
        await watcher.until("a", "b")
        await until(lambda: kept.read_bytes().startswith(b'{"format":1'))


async def test_a_table_that_cannot_be_written_is_logged_once(
    consul: Consul, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    discovery = consul.discovery(cache=tmp_path / "file" / "routes.json")
    async with watching(discovery) as watcher:
        await publish(discovery, "a")
        await watcher.until("a")
        await publish(discovery, "b")
        await watcher.until("a", "b")
        await all_saved(discovery)

    assert len([one for one in caplog.records if "cannot write" in one.getMessage()]) == 1


# --- single records ------------------------------------------------------------------------------------------


async def test_a_damaged_record_is_told_and_leaves_the_others_served(
    consul: Consul, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = consul.discovery(cache=kept)
    async with watching(discovery) as watcher:
        await watcher.until("a", "b")
        consul.fake.store.put("modalnomad/apps/main/a", b"oops")
        await publish(discovery, "c")
        await watcher.until("a", "b", "c")
        (problem,) = await discovery.problems()
        with pytest.raises(BackendRefused, match="modalnomad/apps/main/a is damaged"):
            await discovery.app("a", "main")
        with pytest.raises(BackendRefused, match="modalnomad/apps/main/a is damaged"):
            await publish(discovery, "a", version=2)
        await until(lambda: b"main/c" in kept.read_bytes())

    assert problem.path == "Consul key modalnomad/apps/main/a"
    assert "its last readable content stays in force" in caplog.text
    again = consul.discovery(cache=kept)
    async with watching(again) as watcher:
        await watcher.until("a", "b", "c")
        await again.publish(WithdrawApp("a", "main"))
        await watcher.until("b", "c")
    assert await again.problems() == ()


async def test_a_record_of_a_newer_release_is_left_as_it_is(consul: Consul) -> None:
    discovery = consul.discovery()
    await publish(discovery, "b")
    newer = json.dumps({"kind": "app", "format": 2, "what": "ever"}).encode()
    consul.fake.store.put("modalnomad/apps/main/a", newer)

    with pytest.raises(
        BackendRefused, match=r"written by a newer modalnomad \(format 2, this one knows 1\)"
    ) as refused:
        await publish(discovery, "a")

    assert "newer modalnomad" in (refused.value.hint or "")
    assert [app.app for app in await discovery.apps()] == ["b"]
    assert [problem.path for problem in await discovery.problems()] == ["Consul key modalnomad/apps/main/a"]
    assert consul.fake.store.keys["modalnomad/apps/main/a"].value == newer


async def test_a_record_too_large_for_consul_says_what_to_do(consul: Consul) -> None:
    discovery = consul.discovery()
    await publish(discovery, "a")
    large = app_record("a", 2, note=secrets.token_hex(512 * 1024))

    with pytest.raises(BackendRefused, match=r"record modalnomad/apps/main/a is too large for Consul") as refused:
        await discovery.publish(PublishApp(large, 1))

    assert "nomad.keep_versions" in (refused.value.hint or "")
    assert await discovery.app("a", "main") == app_record("a")


# --- writes whose answer is lost -----------------------------------------------------------------------------


async def test_a_write_that_was_done_though_its_answer_was_lost_counts_as_done(consul: Consul) -> None:
    discovery = consul.discovery()
    for change in (
        PublishApp(app_record("a"), 0),
        PutToken(Token(id="wk-1", secret_sha256="5" * 64, environment="main")),
        DeleteToken("wk-1", "main"),
        WithdrawApp("a", "main"),
    ):
        consul.fake.fail(path="/v1/txn", after=True, text="rpc error making call: EOF")
        await discovery.publish(change)

    assert (await discovery.apps(), await discovery.tokens("main")) == ((), ())


async def test_a_write_that_failed_changed_nothing(consul: Consul) -> None:
    discovery = consul.discovery()
    await publish(discovery, "a")
    before = dict(consul.fake.store.keys)
    for status in (500, 403):
        consul.fake.fail(path="/v1/txn", status=status, text="no")
        with pytest.raises(ServerRefused, match=f"PUT /v1/txn with {status}: no"):
            await publish(discovery, "a", version=2)

    assert consul.fake.store.keys == before
    await publish(discovery, "a", version=2)


async def test_two_deployers_of_one_app_and_a_third_of_another_do_not_lose_writes(consul: Consul) -> None:
    one, other = consul.discovery(), consul.discovery()
    await publish(one, "a")
    await publish(other, "b")
    await publish(one, "a", version=2)
    with pytest.raises(BackendConflict, match="found serial 2, expected 1"):
        await publish(other, "a", version=2)

    assert [(app.app, app.serial) for app in await one.apps()] == [("a", 2), ("b", 1)]


class Meddled(ConsulApi):
    """Before each write somebody changes the same record by hand, without the guard."""

    store: Store

    async def txn(self, operations: Iterable[Op]) -> None:
        self.store.put("modalnomad/apps/main/a", encode(app_record("a", 7)))
        await super().txn(operations)


async def test_a_record_changed_by_hand_meanwhile_is_not_overwritten(consul: Consul) -> None:
    await publish(consul.discovery(), "a")
    api = Meddled(consul.api().http)
    api.store = consul.fake.store
    with pytest.raises(BackendConflict, match="found serial 7, expected 1"):
        await publish(ConsulDiscovery(api, prefix=PREFIX), "a", version=2)

    assert await consul.discovery().app("a", "main") == app_record("a", 7)


async def test_records_are_one_key_each_with_a_guard_beside_them(consul: Consul) -> None:
    await publish(consul.discovery(), "a")
    store = consul.fake.store

    assert sorted(store.keys) == ["modalnomad/apps/_guard", "modalnomad/apps/main/a"]
    assert store.keys["modalnomad/apps/main/a"].value == encode(app_record("a"))
    assert len({entry.modify for entry in store.keys.values()}) == 1


@pytest.mark.parametrize("name", ["site.com", "tool.py", ".", "..", "a.b-c_d"])
async def test_an_app_may_have_any_name(consul: Consul, name: str) -> None:
    discovery = consul.discovery()
    async with watching(discovery) as watcher:
        await publish(discovery, name)
        await watcher.until(name)
        assert await discovery.app(name, "main") == app_record(name)
        async with discovery.lock(name, lifetime=5):
            pass
        await discovery.publish(WithdrawApp(name, "main"))
        await watcher.until()


async def test_the_guard_is_another_one_after_each_write(consul: Consul) -> None:
    discovery = consul.discovery()
    seen = set()
    for version in (1, 2, 3):
        await publish(discovery, "a", version=version)
        seen.add(consul.fake.store.keys["modalnomad/apps/_guard"].modify)

    assert len(seen) == 3


async def test_a_write_that_others_always_forestall_is_given_up(consul: Consul) -> None:
    stale = {"Results": None, "Errors": [{"OpIndex": 0, "What": "index is stale"}]}
    consul.fake.fail(float("inf"), path="/v1/txn", status=409, text=json.dumps(stale))

    with pytest.raises(BackendConflict, match="at each of 30 tries: index is stale"):
        await publish(consul.discovery(), "a")


async def test_a_quiet_watch_asks_seldom(consul: Consul) -> None:
    discovery = consul.discovery()
    async with watching(discovery) as watcher:
        await publish(discovery, "a")
        await watcher.until("a")
        await until(lambda: consul.fake.waiting == 2)
        asked = len(consul.fake.requests)
        for _ in range(20):
            consul.fake.store.wake()
            await within(discovery.app("a", "main"), 5)

    assert len([one for one in consul.fake.requests[asked:] if "index" in one]) == 0


async def test_nothing_secret_is_logged(consul: Consul, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = Token(id="wk-1", secret_sha256="ab" * 32, environment="main")
    await consul.discovery(token="s3cr3t").publish(PutToken(token))
    consul.fake.fail(status=403, text="ACL not found")
    with pytest.raises(ServerRefused) as refused:
        await consul.discovery(token="s3cr3t").apps()

    assert "s3cr3t" not in caplog.text + str(refused.value) + repr(refused.value) + (refused.value.hint or "")
