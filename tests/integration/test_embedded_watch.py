"""Watching many records costs next to nothing while nobody writes, and misses nothing when somebody does."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from modalnomad.embedded import discovery as watching
from modalnomad.embedded import records, store
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.records import Records
from modalnomad.ports.discovery import PublishApp
from tests.support.apps import app_record, version
from tests.support.engines import within

APPS = 300


class Counted:
    """How often what was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = self.folders = self.files = 0
        self.looked = asyncio.Event()
        read, folders, files = store.read_record, Records.folders, Records._read_all

        def counted_read(path: Path, kind: str, format: int) -> object:
            self.read += 1
            return read(path, kind, format)

        def counted_folders(of: Records, *kinds: str) -> object:
            self.folders += 1
            self.looked.set()
            return folders(of, *kinds)

        def counted_files(of: Records, kind: str) -> object:
            self.files += 1
            return files(of, kind)

        monkeypatch.setattr(records, "read_record", counted_read)
        monkeypatch.setattr(Records, "folders", counted_folders)
        monkeypatch.setattr(Records, "_read_all", counted_files)


async def test_while_nobody_writes_only_folders_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = app_record("a", version("a", 1, functions=1)).model_dump(mode="json")
    folder = tmp_path / "discovery" / "apps" / "main"
    folder.mkdir(parents=True)
    for number in range(APPS):
        record = {"kind": "app", "version": 1, "content": {**content, "app": f"a{number}"}}
        (folder / f"a{number}.json").write_text(json.dumps(record))
    monkeypatch.setattr(watching, "SETTLED_AFTER", 0.05)
    counted = Counted(monkeypatch)
    elsewhere = EmbeddedDiscovery(tmp_path)

    async with aclosing(EmbeddedDiscovery(tmp_path, look_every=0.002).watch()) as watch:  # type: ignore[type-var]
        assert len((await within(anext(watch))).serials) == APPS
        assert counted.read == APPS
        waiting = asyncio.ensure_future(within(anext(watch), 60))
        looked = -1
        while counted.files != looked:  # until it has settled
            looked, folders = counted.files, counted.folders
            while counted.folders < folders + 40:
                counted.looked.clear()
                await within(counted.looked.wait(), 30)
        assert counted.read == APPS

        fresh = app_record("b", version("b", 1, functions=1))
        await elsewhere.publish(PublishApp(fresh, 0))
        snapshot = await waiting

    assert len(snapshot.serials) == APPS + 1
    assert counted.read <= APPS + 2, "its own record when it is published, and when it is seen"


async def test_writes_within_one_tick_of_the_clock_are_all_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's time is the same after the second one, and the next look may come late."""
    monkeypatch.setattr(watching, "SETTLED_AFTER", 0.01)
    monkeypatch.setattr(watching, "RECONCILE_EVERY", 3600.0)
    folder = tmp_path / "discovery" / "apps" / "main"
    elsewhere = EmbeddedDiscovery(tmp_path)
    async with aclosing(EmbeddedDiscovery(tmp_path, look_every=0.2).watch()) as watch:  # type: ignore[type-var]
        await within(anext(watch))
        await elsewhere.publish(PublishApp(app_record("a"), 0))
        tick = folder.stat().st_mtime_ns
        assert len((await within(anext(watch))).serials) == 1

        await elsewhere.publish(PublishApp(app_record("b"), 0))
        os.utime(folder, ns=(tick, tick))
        snapshot = await within(anext(watch))

    assert set(snapshot.serials) == {("main", "a"), ("main", "b")}
