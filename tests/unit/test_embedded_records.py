"""Records that cannot be read: each is said, none takes another down, none is written over."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path

import pytest

from modalnomad.embedded import records, store
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.records import Records
from modalnomad.model.errors import BackendRefused
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.discovery import PublishApp, WithdrawApp
from tests.support.apps import app_record

NEWER = json.dumps({"kind": "app", "version": 2, "content": {"serial": 7}}).encode()
DAMAGED = {
    "empty": b"",
    "half": b'{"kind":"app","version":1,"content":{"app":"a","environ',
    "bits": b"\x00" * 4096,
    "nested": b"[" * 100_000,
    "fields": b'{"kind":"app","version":1,"content":{"app":"a","environment":"main","serial":"x"}}',
    "newer": NEWER,
}


@pytest.fixture
def discovery(tmp_path: Path) -> EmbeddedDiscovery:
    return EmbeddedDiscovery(tmp_path)


def place(home: Path, app: str) -> Path:
    return home / "discovery" / "apps" / "main" / f"{app}.json"


def damage(path: Path, content: bytes) -> None:
    """As a restored file or a failing disk would: another file under the same name."""
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.replace(path)


async def snapshot(discovery: EmbeddedDiscovery) -> RouteSnapshot:
    async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
        async for found in watch:
            return found
    raise AssertionError


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
async def test_a_record_that_cannot_be_read_stays_in_force_and_is_said_once(
    discovery: EmbeddedDiscovery, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for app in ("a", "b"):
        await discovery.publish(PublishApp(app_record(app), 0))
    before = await snapshot(discovery)

    damage(place(tmp_path, "a"), content)
    after = await snapshot(discovery)
    await snapshot(discovery)

    assert after.routes == before.routes
    assert caplog.text.count("its last readable content stays in force") == 1
    assert str(place(tmp_path, "a")) in caplog.text


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
async def test_at_a_fresh_start_the_others_are_served_and_the_problem_is_told(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for app in ("a", "b"):
        await EmbeddedDiscovery(tmp_path).publish(PublishApp(app_record(app), 0))
    damage(place(tmp_path, "a"), content)
    fresh = EmbeddedDiscovery(tmp_path)

    assert {route.app for route in (await snapshot(fresh)).routes} == {"b"}
    assert "it is left out" in caplog.text
    assert [app.app for app in await fresh.apps()] == ["b"]
    (problem,) = await fresh.problems()
    assert problem.path == str(place(tmp_path, "a"))
    assert "newer modalnomad" in problem.message or "damaged" in problem.message


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
async def test_a_record_that_cannot_be_read_is_not_written_over(
    discovery: EmbeddedDiscovery, tmp_path: Path, content: bytes
) -> None:
    await discovery.publish(PublishApp(app_record("a"), 0))
    damage(place(tmp_path, "a"), content)

    for expected in (0, 1):
        with pytest.raises(BackendRefused) as refused:
            await discovery.publish(PublishApp(app_record("a", serial=expected + 1), expected))
        assert refused.value.hint
    with pytest.raises(BackendRefused):
        await discovery.publish(WithdrawApp("a", "main", expected=1))
    assert place(tmp_path, "a").read_bytes() == content

    await discovery.publish(PublishApp(app_record("b"), 0))
    await discovery.publish(WithdrawApp("a", "main"))
    assert await discovery.problems() == ()


async def test_a_mended_record_counts_at_once(discovery: EmbeddedDiscovery, tmp_path: Path) -> None:
    await discovery.publish(PublishApp(app_record("a"), 0))
    good = place(tmp_path, "a").read_bytes()
    damage(place(tmp_path, "a"), b"")
    fresh = EmbeddedDiscovery(tmp_path)
    assert (await snapshot(fresh)).routes == ()

    damage(place(tmp_path, "a"), good)

    assert {route.app for route in (await snapshot(fresh)).routes} == {"a"}
    assert await fresh.problems() == ()


async def test_a_record_under_another_name_is_not_served_twice(discovery: EmbeddedDiscovery, tmp_path: Path) -> None:
    await discovery.publish(PublishApp(app_record("a"), 0))
    place(tmp_path, "copy").write_bytes(place(tmp_path, "a").read_bytes())

    assert [route.app for route in (await snapshot(discovery)).routes] == ["a"] * 3
    (problem,) = await discovery.problems()
    assert "it is the record of App a in environment main" in problem.message


async def test_what_the_system_refuses_once_is_read_the_next_time(
    discovery: EmbeddedDiscovery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await discovery.publish(PublishApp(app_record("a"), 0))
    whole = Path.read_bytes

    def too_many_files(path: Path) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", too_many_files)
    for _ in range(3):
        assert await discovery.apps() == ()
    monkeypatch.setattr(Path, "read_bytes", whole)

    assert [app.app for app in await discovery.apps()] == ["a"]
    assert caplog.text.count("too many open files in this process") == 1


async def test_only_records_that_were_replaced_are_read_again(
    discovery: EmbeddedDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for app in ("a", "b", "c"):
        await discovery.publish(PublishApp(app_record(app), 0))
    await discovery.apps()
    read: list[str] = []
    original = store.read_record

    def counted(path: Path, kind: str, version: int) -> object:
        read.append(path.stem)
        return original(path, kind, version)

    monkeypatch.setattr(records, "read_record", counted)
    for _ in range(5):
        await discovery.apps()
    assert read == []

    elsewhere = Records(discovery._home)
    elsewhere.publish(PublishApp(app_record("b", serial=2), 1))
    assert read == ["b"], "a publication decodes its own record, and those that mention one of its hosts"
    read.clear()

    assert [app.serial for app in await discovery.apps()] == [1, 2, 1]
    assert read == ["b"]
