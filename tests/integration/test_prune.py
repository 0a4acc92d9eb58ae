"""Pruning: what no kept version needs goes, and nothing that anybody may need, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk.store import ImageStore

from modalnomad.deploy.image_admin import prune_images
from modalnomad.embedded import prune as rules
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.embedded.store import FileLock, named_lock
from modalnomad.model.apps import AppRecord, trim
from modalnomad.model.errors import BackendRefused
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import SecretRef
from modalnomad.ports.discovery import PublishApp
from modalnomad.ports.pruning import Item
from modalnomad.settings import EmbeddedSettings, Settings
from modalnomad.wiring.home import home_of, working
from modalnomad.wiring.prune import home_pruning
from modalnomad.wiring.records import prune
from tests.support.apps import app_record, digest, version

DAY = 86400.0
LONG_AGO = 90 * DAY


class Stored:
    """A home with things in it that are as old as they are said to be."""

    def __init__(self, home: Path, **settings: float) -> None:
        self.settings = Settings(home=home, embedded=EmbeddedSettings(**settings))
        self.home = home_of(self.settings)
        self.discovery = EmbeddedDiscovery(home)
        self.artifacts = EmbeddedArtifacts(home)
        self.secrets = EmbeddedSecrets(home)
        self.images = ImageStore(home / "images")

    def aged(self, path: Path, age: float) -> None:
        os.utime(path, times=(time.time() - age,) * 2)

    async def bundle(self, text: str, age: float = LONG_AGO) -> Digest:
        source = self.home.parent / "source"
        source.write_text(text)
        stored = await self.artifacts.put(source)
        self.aged(self.home / "artifacts" / stored, age)
        return stored

    async def secret(self, text: str, age: float = LONG_AGO) -> SecretRef:
        await self.secrets.create_anonymous(digest(text), "main", {"VALUE": text})
        self.aged(self.home / "secrets" / "anonymous" / "main" / f"{digest(text)}.json", age)
        return SecretRef(anonymous=digest(text))

    def image(self, text: str, age: float = LONG_AGO) -> Digest:
        folder = self.home / "images" / digest(text)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to("/bin/sh")
        about = {"python": "3.11", "packages": [], "size": 1000, "created": 0.0}
        (folder / "modalnomad-image.json").write_text(json.dumps(about))
        self.aged(folder / "modalnomad-image.json", age)
        return digest(text)

    def log(self, app: str, age: float = LONG_AGO) -> None:
        path = self.home / "logs" / "main" / app / "1.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("{}\n")
        self.aged(path, age)

    async def app(self, app: str, *texts: str, stopped_for: float | None = None) -> AppRecord:
        """One version for each text, each with a bundle, an image and a secret of its own."""
        versions = [
            version(
                app,
                number,
                bundle=await self.bundle(f"bundle {text}"),
                image=self.image(f"image {text}"),
                secrets=[await self.secret(f"secret {text}")],
            )
            for number, text in enumerate(texts, 1)
        ]
        record = app_record(app, *versions)
        if stopped_for is not None:
            record = record.model_copy(update={"stopped_at": time.time() - stopped_for})
        await self.discovery.publish(PublishApp(record, 0))
        return record

    async def left(self) -> set[str]:
        """The kinds and names of everything that is there."""
        plan = await home_pruning(self.settings).plan()
        return {self.name(item) for item in plan.items}

    def name(self, item: Item) -> str:
        return f"{item.kind} {item.key if item.kind == 'secret' else item.name}"


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path / "home")


def needs(record: AppRecord) -> set[str]:
    """All that its versions need, as `Stored.left` names it."""
    revisions = [revision for each in record.versions for revision in each.revisions]
    secrets = {f"secret {ref.anonymous}" for revision in revisions for ref in revision.secrets}
    return {f"bundle {r.bundle}" for r in revisions} | {f"image {r.image.digest}" for r in revisions} | secrets


async def test_what_kept_versions_need_stays_and_the_rest_goes(stored: Stored) -> None:
    served = await stored.app("served", "s1", "s2", "s3")
    stopped = await stored.app("stopped", "p1", stopped_for=29 * DAY)
    forgotten = await stored.app("forgotten", "f1", stopped_for=31 * DAY)
    old = {
        f"bundle {await stored.bundle('orphan')}",
        f"image {stored.image('orphan')}",
        f"secret {(await stored.secret('orphan')).anonymous}",
        "log gone",
        "App forgotten",
        "log forgotten",
    }
    young = {
        f"bundle {await stored.bundle('young', 60)}",
        f"image {stored.image('young', 6 * DAY)}",
        f"secret {(await stored.secret('young', 60)).anonymous}",
        "log young",
    }
    for app, age in (("gone", LONG_AGO), ("served", LONG_AGO), ("young", 60.0), ("forgotten", LONG_AGO)):
        stored.log(app, age)
    pruning = home_pruning(stored.settings)

    plan = await pruning.plan()

    assert {stored.name(item) for item in plan.goes} == old | needs(forgotten)
    assert all(item.why for item in plan.items)
    before = await stored.left()
    assert old <= before, "a plan removes nothing"

    pruned = await pruning.carry_out(plan)

    assert pruned.problems == ()
    assert {stored.name(item) for item in pruned.removed} == old | needs(forgotten)
    assert pruned.freed > 0
    assert await stored.left() == {"App served", "App stopped", "log served"} | needs(served) | needs(stopped) | young
    for each in (*served.versions, *stopped.versions):
        for revision in each.revisions:
            await stored.artifacts.locate(revision.bundle)
            await stored.secrets.check(revision.secrets, "main")
    assert await prune(stored.settings) == type(pruned)((), ())


async def test_zero_days_keep_stopped_apps_for_ever(tmp_path: Path) -> None:
    stored = Stored(tmp_path / "home", keep_stopped=0)
    await stored.app("a", "1", stopped_for=10_000 * DAY)

    assert (await prune(stored.settings)).removed == ()


async def test_what_somebody_under_way_has_stored_stays(stored: Stored) -> None:
    bundle = await stored.bundle("x", age=0)
    await stored.secret("x", age=0)
    two_hours_ago = time.time() - 7200
    lock = stored.home / "locks" / "deploy-main-a.lock"

    with named_lock(lock, "deploy"):
        os.utime(lock, times=(two_hours_ago - 60,) * 2)
        for path in (stored.home / "artifacts" / bundle, *(stored.home / "secrets").glob("anonymous/main/*")):
            os.utime(path, times=(two_hours_ago,) * 2)
        assert (await prune(stored.settings)).removed == ()
    with working(stored.settings, "serve"):
        for path in (stored.home / "locks").glob("serve-*"):
            os.utime(path, times=(two_hours_ago - 60,) * 2)
        assert (await prune(stored.settings)).removed == ()

    assert {item.kind for item in (await prune(stored.settings)).removed} == {"bundle", "secret"}
    assert list((stored.home / "locks").iterdir()) == [], "those of processes that are gone go"


@pytest.mark.parametrize("look", [rules.put_before, lambda home, now: rules.forget_locks(home)])
def test_who_only_looks_at_a_lock_is_not_taken_for_its_holder(
    stored: Stored, look: Callable[[Path, float], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored.home / "locks" / "deploy-main-a.lock"
    with named_lock(path, "deploy"):
        pass
    looking, looker = threading.Event(), threading.Thread(target=look, args=(stored.home, 0.0))
    acquire = FileLock.acquire

    def slowly(self: FileLock, **how: Any) -> None:
        acquire(self, **how)
        if self.path == path and threading.current_thread() is looker:
            looking.set()
            time.sleep(0.2)  # as on a busy machine

    monkeypatch.setattr(FileLock, "acquire", slowly)
    looker.start()
    assert looking.wait(20)
    with named_lock(path, "deploy"):
        pass
    looker.join()


async def test_what_is_needed_again_by_the_time_stays(stored: Stored) -> None:
    forgotten = await stored.app("forgotten", "f1", stopped_for=31 * DAY)
    orphan, again = await stored.bundle("orphan"), await stored.bundle("again")
    held = stored.image("held")
    pruning = home_pruning(stored.settings)
    plan = await pruning.plan()
    assert {"App forgotten", f"bundle {orphan}", f"bundle {again}", f"image {held}"} <= {
        stored.name(item) for item in plan.goes
    }

    back = forgotten.model_copy(update={"serial": 2, "stopped_at": None})
    await stored.discovery.publish(PublishApp(back, 1))
    await stored.discovery.publish(PublishApp(app_record("new", version("new", 1, bundle=orphan)), 0))
    await stored.bundle("again", age=0)
    with stored.images.hold(held):
        pruned = await pruning.carry_out(plan)

    assert (pruned.removed, pruned.problems) == ((), ())
    assert await stored.artifacts.locate(orphan)


async def test_a_record_that_cannot_be_read_keeps_everything(stored: Stored) -> None:
    await stored.app("a", "1")
    await stored.bundle("orphan")
    stored.image("orphan")
    path = stored.home / "discovery" / "apps" / "main" / "a.json"
    path.write_text("")
    before = sorted(stored.home.rglob("*"))

    with pytest.raises(BackendRefused, match=r"a\.json: is damaged"):
        await home_pruning(stored.settings).plan()
    with pytest.raises(BackendRefused, match="cannot be read"):
        await prune_images(stored.images, EmbeddedDiscovery(stored.home))
    pruned = await prune(stored.settings)

    assert pruned.removed == ()
    assert "cannot be read" in pruned.problems[0]
    assert [path for path in before if not path.exists()] == []


async def test_one_thing_that_cannot_be_removed_hinders_no_other(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = await stored.bundle("stuck"), await stored.bundle("other")
    remove = EmbeddedArtifacts.remove

    def refuse(self: EmbeddedArtifacts, digest: Digest, *, unless_put_since: float) -> int:
        if digest == stuck:
            raise BackendRefused(f"cannot remove {digest}: permission denied")
        return remove(self, digest, unless_put_since=unless_put_since)

    monkeypatch.setattr(EmbeddedArtifacts, "remove", refuse)
    pruned = await prune(stored.settings)

    assert [item.name for item in pruned.removed] == [other]
    assert [stuck in problem for problem in pruned.problems] == [True]


async def test_image_prune_keeps_what_an_older_kept_version_needs(stored: Stored) -> None:
    record = await stored.app("a", "1", "2", stopped_for=DAY)
    gone = stored.image("orphan", age=1)

    pruned = await prune_images(stored.images, EmbeddedDiscovery(stored.home))

    assert pruned.removed == (gone,)
    assert {image.digest for image in stored.images.list()} == {
        r.image.digest for v in record.versions for r in v.revisions
    }


async def test_no_deploy_beside_loses_anything(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hour of grace, but for some ticks of the clock that files get their times from: the locks alone have
    to do."""
    monkeypatch.setattr(rules, "YOUNG", 0.02)
    over = asyncio.Event()
    removed = rounds = 0

    async def older_than_the_grace() -> None:
        """A whole prune comes by for what has only its lock."""
        await asyncio.sleep(0.03)
        before = rounds
        while rounds < before + 2 and not pruner.done():  # noqa: ASYNC110 - the first one may have begun earlier
            await asyncio.sleep(0.001)

    async def deploys(app: str) -> None:
        record: AppRecord | None = None
        for number in range(1, 26):
            async with stored.discovery.lock(f"deploy-main-{app}", lifetime=60):
                source = stored.home.parent / app
                source.write_text(f"{app} {number % 6}")
                bundle = await stored.artifacts.put(source)
                await stored.secrets.create_anonymous(digest(f"{app} {number % 6}"), "main", {"A": "1"})
                if number % 6 == 0:
                    await older_than_the_grace()
                new = version(app, number, bundle=bundle, secrets=[SecretRef(anonymous=digest(f"{app} {number % 6}"))])
                versions = trim((*(record.versions if record else ()), new), 2)
                record = app_record(app, *versions, serial=number)
                await stored.discovery.publish(PublishApp(record, number - 1))
            for each in record.versions:
                await stored.artifacts.locate(each.revisions[0].bundle)
                await stored.secrets.check(each.revisions[0].secrets, "main")

    async def prunes() -> None:
        nonlocal removed, rounds
        while not over.is_set():
            pruned = await prune(stored.settings)
            assert pruned.problems == ()
            removed += len(pruned.removed)
            rounds += 1

    pruner = asyncio.ensure_future(prunes())
    try:
        await asyncio.gather(deploys("a"), deploys("b"))
    finally:
        over.set()
        await pruner
    assert removed > 0
