"""What an engine does later, and what is begun meanwhile: neither undoes the other."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from tests.support.engines import HELLO, ThisEnvironment, embedded, eventually


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class SlowImages(ThisEnvironment):
    """Looks for an environment only when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_for, self.goes_on = threading.Event(), threading.Event()

    def path(self, digest: str) -> Path | None:
        self.looked_for.set()
        assert self.goes_on.wait(10)
        return super().path(digest)


async def test_a_start_is_prepared_again_when_a_retirement_came_between(home: Path) -> None:
    """Its App was stopped and served again while the first request prepared it."""
    known: dict[RevisionId, Revision] = {}
    images = SlowImages()
    async with embedded(home, images=images, known=known.get) as h:
        revision = await h.revision(HELLO, prepare=False)
        known[revision.id] = revision
        start = asyncio.ensure_future(h.start(revision))
        assert await asyncio.to_thread(images.looked_for.wait, 10)
        retire = asyncio.ensure_future(h.engine.retire(revision.id))
        await asyncio.sleep(0)
        images.goes_on.set()

        await retire
        assert (await h.ask(await start)).status == 200


async def test_a_retirement_goes_on_when_its_caller_gives_up(home: Path) -> None:
    async with embedded(home) as h:
        revision = await h.revision(HELLO)
        key = await h.started(revision)
        retire = asyncio.ensure_future(h.engine.retire(revision.id))
        await asyncio.sleep(0)
        retire.cancel()
        await asyncio.wait([retire])
        assert retire.cancelled()

        await eventually(lambda: not list((home / "bundles").iterdir()), "the bundle is gone")
        assert (await h.replica(key)).failure is None


async def test_nothing_is_left_when_the_engine_ends_in_the_middle_of_a_retirement(home: Path) -> None:
    async with embedded(home) as h:
        revision = await h.revision(HELLO)
        await h.started(revision)
        retire = asyncio.ensure_future(h.engine.retire(revision.id))
        await asyncio.sleep(0)
        retire.cancel()
    assert list((home / "bundles").iterdir()) == []
