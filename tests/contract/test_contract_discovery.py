"""The discovery port, wherever the records are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from modalnomad.embedded.discovery import EmbeddedDiscovery, EphemeralDiscovery
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.errors import BackendConflict, NotFound
from modalnomad.model.manifest import Endpoint, Function, Source
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import Route, RouteSnapshot, ScalingOverride, Token
from modalnomad.ports.discovery import DeleteToken, Discovery, PublishApp, PutToken, WithdrawApp
from tests.support.consul import CONSULS, consul_for_test
from tests.support.engines import IMAGE, PATIENCE, within

Maker = Callable[[], Discovery]
"""Makes one more on the same records, as another process would have it."""


@pytest.fixture(params=["embedded", "ephemeral", *CONSULS])
async def maker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Maker]:
    """Of each kind, on no records."""
    kind: str = request.param
    if kind in CONSULS:
        async with consul_for_test(kind) as consul:
            yield consul.discovery
    else:
        home = tmp_path / "home"
        yield lambda: EmbeddedDiscovery(home) if kind == "embedded" else EphemeralDiscovery(home)


@pytest.fixture
def discovery(maker: Maker) -> Discovery:
    """One of each kind, empty."""
    return maker()


def record(app: str, version: int = 1, *, environment: str = "main", label: str | None = None) -> AppRecord:
    """An App with one endpoint."""
    endpoint = Endpoint(name="f", kind="asgi_app", label=label)
    revision = Revision.make(
        app=app,
        environment=environment,
        function=Function(tag="f", endpoints=(endpoint,), timeout=version),
        source=Source(mode="script", entry="a.py", root="/r", module="a"),
        bundle=IMAGE,
        image=BuiltImage(digest=IMAGE, python="3.11", env=(("A", "1"),)),
    )
    host = f"{label or app}.localhost"
    route = Route(hosts=(host,), environment=environment, app=app, endpoint=endpoint, revision=revision.id)
    made = AppVersion(
        number=version, routes=(route,), revisions=(revision,), deployed_at=version, deployed_by="me@here"
    )
    return AppRecord(app=app, environment=environment, serial=version, versions=(made,))


def publish(app: str, version: int = 1, **options: str) -> PublishApp:
    return PublishApp(record(app, version, **options), expected=version - 1)


def token(id: str, environment: str = "main") -> Token:
    return Token(id=id, secret_sha256="0" * 64, environment=environment, name="ci", created_at=1.5, rate=3)


async def current(discovery: Discovery) -> RouteSnapshot:
    async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
        snapshot: RouteSnapshot = await within(anext(watch))
        return snapshot


async def until(discovery: Discovery, wanted: Callable[[RouteSnapshot], bool]) -> RouteSnapshot:
    async with asyncio.timeout(PATIENCE), aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
        async for snapshot in watch:
            if wanted(snapshot):
                return snapshot
    raise AssertionError("watch ended")


def apps(snapshot: RouteSnapshot) -> list[str]:
    return sorted(route.app for route in snapshot.routes)


async def test_nothing_published_is_an_empty_snapshot_at_once(discovery: Discovery) -> None:
    snapshot = await current(discovery)

    assert (snapshot.routes, snapshot.revisions, snapshot.tokens) == ((), {}, ())
    assert await discovery.app("a", "main") is None


async def test_what_was_published_is_read_back_whole(discovery: Discovery) -> None:
    await discovery.publish(publish("a"))
    await discovery.publish(publish("b", environment="staging"))

    snapshot = await current(discovery)

    assert await discovery.app("a", "main") == record("a")
    assert apps(snapshot) == ["a", "b"]
    assert set(snapshot.revisions) == {route.revision for route in snapshot.routes}
    assert snapshot.revisions[record("a").revisions[0].id] == record("a").revisions[0]


async def test_a_watcher_sees_every_publication_as_a_whole_snapshot(discovery: Discovery) -> None:
    async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
        seen = [await within(anext(watch))]
        for change in (publish("a"), publish("b"), publish("a", 2), WithdrawApp("b", "main")):
            await discovery.publish(change)
            seen.append(await within(anext(watch)))

    assert [apps(snapshot) for snapshot in seen] == [[], ["a"], ["a", "b"], ["a", "b"], ["a"]]
    assert [snapshot.index for snapshot in seen] == sorted({snapshot.index for snapshot in seen})
    assert list(seen[3].revisions.values()) == [record("a", 2).revisions[0], record("b").revisions[0]]
    assert [apps(await current(discovery))] == [["a"]]


@pytest.mark.parametrize("expected", [0, 2, 7])
async def test_only_the_expected_version_is_replaced(discovery: Discovery, expected: int) -> None:
    await discovery.publish(publish("a"))

    with pytest.raises(BackendConflict, match="serial 1"):
        await discovery.publish(PublishApp(record("a", expected + 1), expected))

    assert await discovery.app("a", "main") == record("a")


async def test_of_many_publishers_of_one_version_one_wins(discovery: Discovery) -> None:
    tries = [discovery.publish(publish("a", label=f"l{n}")) for n in range(8)]
    results = await asyncio.gather(*tries, return_exceptions=True)

    assert sum(isinstance(result, BackendConflict) for result in results) == 7
    assert len((await current(discovery)).routes) == 1


def stopped(found: AppRecord) -> AppRecord:
    return found.model_copy(update={"serial": found.serial + 1, "stopped_at": 9.0})


def again(found: AppRecord) -> AppRecord:
    return found.model_copy(update={"serial": found.serial + 1, "stopped_at": None})


async def test_all_apps_are_listed_stopped_ones_too_by_environment_and_name(discovery: Discovery) -> None:
    for app, environment in (("b", "staging"), ("b", "main"), ("a", "main")):
        await discovery.publish(publish(app, environment=environment, label=f"{app}-{environment}"))
    await discovery.publish(PublishApp(stopped(record("a", label="a-main")), 1))

    assert [(found.environment, found.app) for found in await discovery.apps()] == [
        ("main", "a"),
        ("main", "b"),
        ("staging", "b"),
    ]
    assert [found.app for found in await discovery.apps("staging")] == ["b"]
    assert (await discovery.apps("main"))[0].current is None
    assert await discovery.problems() == ()


async def test_a_snapshot_tells_serials_overrides_and_when_it_was_deployed(discovery: Discovery) -> None:
    await discovery.publish(publish("a"))
    override = ScalingOverride(min_containers=2)
    scaled = record("a").model_copy(update={"serial": 2, "overrides": {"f": override, "gone": override}})
    await discovery.publish(PublishApp(scaled, 1))
    await discovery.publish(publish("b", environment="staging"))
    (revision,) = record("a").revisions

    snapshot = await current(discovery)

    assert snapshot.serials == {("main", "a"): 2, ("staging", "b"): 1}
    assert snapshot.overrides == {revision.id: override}
    assert snapshot.deployed_at[revision.id] == 1

    await discovery.publish(PublishApp(stopped(scaled), 2))
    snapshot = await current(discovery)

    assert snapshot.serials == {("main", "a"): 3, ("staging", "b"): 1}
    assert revision.id not in snapshot.revisions | snapshot.overrides | snapshot.deployed_at


async def test_a_serial_rises_by_one(discovery: Discovery) -> None:
    await discovery.publish(publish("a"))

    with pytest.raises(ValueError, match="serial 3 does not follow 1"):
        await discovery.publish(PublishApp(record("a", 3), 1))


@pytest.mark.parametrize("environment", ["main", "staging"])
async def test_a_host_that_another_app_has_is_refused_naming_both(discovery: Discovery, environment: str) -> None:
    await discovery.publish(publish("first", label="site"))

    with pytest.raises(BackendConflict) as refused:
        await discovery.publish(publish("second", environment=environment, label="site"))

    for word in ("first/f", "second/f", "site.localhost", "environment main"):
        assert word in refused.value.message
    assert "modalnomad app stop first" in (refused.value.hint or "")
    assert await discovery.app("second", environment) is None


async def test_an_app_may_keep_its_own_hosts(discovery: Discovery) -> None:
    await discovery.publish(publish("a", label="site"))
    await discovery.publish(publish("a", 2, label="site"))

    assert [route.hosts for route in (await current(discovery)).routes] == [("site.localhost",)]


async def test_a_stopped_app_s_hosts_are_free_and_may_be_lost(discovery: Discovery) -> None:
    first = record("first", label="site")
    await discovery.publish(PublishApp(first, 0))
    await discovery.publish(PublishApp(stopped(first), 1))
    await discovery.publish(publish("second", label="site"))

    with pytest.raises(BackendConflict, match=r"site\.localhost"):
        await discovery.publish(PublishApp(again(stopped(first)), 2))
    assert apps(await current(discovery)) == ["second"]

    await discovery.publish(WithdrawApp("second", "main"))
    await discovery.publish(PublishApp(again(stopped(first)), 2))

    assert apps(await current(discovery)) == ["first"]


async def test_of_two_publishers_of_one_host_one_wins(discovery: Discovery) -> None:
    for number in range(10):
        tries = [discovery.publish(publish(f"{name}{number}", label=f"site{number}")) for name in ("a", "b")]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["BackendConflict", "NoneType"]

    hosts = [route.hosts[0] for route in (await current(discovery)).routes]
    assert sorted(hosts) == sorted({f"site{number}.localhost" for number in range(10)})


async def test_a_withdrawal_may_name_the_serial_it_means(discovery: Discovery) -> None:
    await discovery.publish(publish("a"))
    await discovery.publish(publish("a", 2))

    with pytest.raises(BackendConflict, match="found serial 2, expected 1"):
        await discovery.publish(WithdrawApp("a", "main", expected=1))
    assert apps(await current(discovery)) == ["a"]

    await discovery.publish(WithdrawApp("a", "main", expected=2))

    assert apps(await current(discovery)) == []


async def test_a_withdrawn_app_can_be_published_anew(discovery: Discovery) -> None:
    await discovery.publish(publish("a"))
    await discovery.publish(WithdrawApp("a", "main"))
    with pytest.raises(NotFound):
        await discovery.publish(WithdrawApp("a", "main"))

    await discovery.publish(publish("a"))

    assert apps(await current(discovery)) == ["a"]


async def test_tokens_are_put_listed_by_environment_watched_and_deleted(discovery: Discovery) -> None:
    for id, environment in (("wk-1", "main"), ("wk-2", "main"), ("wk-3", "staging")):
        await discovery.publish(PutToken(token(id, environment)))

    assert await discovery.tokens("main") == (token("wk-1"), token("wk-2"))
    assert [found.id for found in (await current(discovery)).tokens] == ["wk-1", "wk-2", "wk-3"]

    renamed = token("wk-1").model_copy(update={"name": "other"})
    await discovery.publish(PutToken(renamed))
    await discovery.publish(DeleteToken("wk-2", "main"))

    assert await discovery.tokens("main") == (renamed,)
    for id, environment in (("wk-2", "main"), ("wk-1", "staging"), ("../x", "main")):
        with pytest.raises(NotFound):
            await discovery.publish(DeleteToken(id, environment))


async def test_tokens_made_elsewhere_reach_a_watcher(discovery: Discovery, maker: Maker) -> None:
    elsewhere = maker()
    async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
        await within(anext(watch))
        await elsewhere.publish(PutToken(token("wk-1")))
        snapshot = await within(anext(watch))

    assert snapshot.tokens == (token("wk-1"),)


async def test_a_lock_has_one_holder_and_names_it(discovery: Discovery) -> None:
    async with discovery.lock("deploy", lifetime=5):
        with pytest.raises(BackendConflict, match=r"'deploy' is held by process \d+"):
            async with discovery.lock("deploy", lifetime=5):
                pass
        async with discovery.lock("another", lifetime=5):
            pass

    async with discovery.lock("deploy", lifetime=5):
        pass


def tasks() -> set[asyncio.Task[object]]:
    """But for those of a server in this process."""
    return {task for task in asyncio.all_tasks() if "RequestHandler" not in str(task.get_coro())}


async def test_a_watch_that_is_closed_leaves_no_task(discovery: Discovery) -> None:
    before = tasks()
    watch: AsyncIterator[RouteSnapshot] = discovery.watch()
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    assert tasks() == before
