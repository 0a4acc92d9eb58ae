"""What an engine does later, and what is begun meanwhile: neither undoes the other."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded.gpus import Gpus
from modalnomad.embedded.janitor import clear_unheld
from modalnomad.embedded.prune import UnpackedShelf
from modalnomad.embedded.store import FileLock, make_folder
from modalnomad.model.errors import BackendRefused
from modalnomad.model.gpus import Gpu
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Resources
from modalnomad.model.replica import ReplicaState
from modalnomad.model.revision import Revision
from tests.support.engines import HELLO, PATIENCE, ThisEnvironment, embedded, eventually


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
        assert self.goes_on.wait(PATIENCE)
        return super().path(digest)


async def test_a_start_is_prepared_again_when_a_retirement_came_between(home: Path) -> None:
    """Its App was stopped and served again while the first request prepared it."""
    known: dict[RevisionId, Revision] = {}
    images = SlowImages()
    async with embedded(home, images=images, known=known.get) as h:
        revision = await h.revision(HELLO, prepare=False)
        known[revision.id] = revision
        start = asyncio.ensure_future(h.start(revision))
        assert await asyncio.to_thread(images.looked_for.wait, PATIENCE)
        retire = asyncio.ensure_future(h.engine.retire(revision.id))
        await asyncio.sleep(0)
        images.goes_on.set()

        await retire
        assert (await h.ask(await start)).status == 200


async def test_a_start_after_a_retirement_that_waits_is_not_ended_with_what_was_there(home: Path) -> None:
    """It is prepared anew, once the retirement is through."""
    known: dict[RevisionId, Revision] = {}
    images = SlowImages()
    images.goes_on.set()
    async with embedded(home, images=images, known=known.get) as h:
        revision = await h.revision(HELLO)
        known[revision.id] = revision
        images.looked_for.clear()
        images.goes_on.clear()
        again = asyncio.ensure_future(h.engine.prepare(revision))
        assert await asyncio.to_thread(images.looked_for.wait, PATIENCE)
        retire = asyncio.ensure_future(h.engine.retire(revision.id))
        await asyncio.sleep(0)
        start = asyncio.ensure_future(h.start(revision))
        await asyncio.sleep(0)
        images.goes_on.set()

        await asyncio.gather(again, retire)
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


@pytest.mark.parametrize("who", ["engine", "prune", "janitor"])
async def test_a_bundle_whose_removal_was_cut_off_does_not_pass_for_a_whole_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Another process was killed while it removed what this one then needs."""

    def cut_off(path: str, onerror: object) -> None:
        os.unlink(os.path.join(path, "prog.py"))
        raise OSError

    async with embedded(home) as h:
        revision = await h.revision(HELLO)
        bundle = home / "bundles" / revision.bundle
        if who != "engine":
            await h.engine.retire(revision.id)
            bundle.mkdir()
            (bundle / "prog.py").touch()
        with monkeypatch.context() as patch, suppress(OSError, BackendRefused):
            patch.setattr("modalnomad.embedded.janitor.shutil.rmtree", cut_off)
            match who:
                case "engine":
                    await h.engine.retire(revision.id)
                case "prune":
                    UnpackedShelf(home)._remove(bundle, 0)
                case _:
                    clear_unheld(str(home / "bundles"))
        assert not (bundle / "prog.py").exists()

        await h.engine.prepare(revision)
        assert (await h.ask(await h.started(revision))).status == 200
    clear_unheld(str(home / "bundles"))
    assert list((home / "bundles").iterdir()) == []


@pytest.mark.parametrize("look", [Gpus.held, lambda gpus: gpus.free(["H100"]), lambda gpus: gpus.free(["H100:2"])])
async def test_a_card_that_another_process_only_looks_at_is_not_taken(
    home: Path, look: Callable[[Gpus], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy, or a list of the cards, tries their locks; on a busy machine that takes a while."""
    runner = home.parent / "sleep.py"
    runner.write_text("import time\ntime.sleep(3600)\n")
    card = home / "gpus" / "GPU-1.lock"

    def cards() -> tuple[Gpu, ...]:
        return (Gpu("GPU-1", "NVIDIA H100 80GB HBM3", 81_559),)

    looking, looker = threading.Event(), threading.Thread(target=look, args=(Gpus(home, cards),))
    acquire = FileLock.acquire

    def slowly(self: FileLock, **how: Any) -> None:
        acquire(self, **how)
        if self.path == card and threading.current_thread() is looker:
            looking.set()
            time.sleep(0.2)

    async with embedded(home, gpus=Gpus(home, cards), runner=runner) as h:
        revision = await h.revision(HELLO, resources=Resources(gpu=("H100",)))
        make_folder(card.parent)
        card.touch()
        monkeypatch.setattr(FileLock, "acquire", slowly)
        looker.start()
        assert await asyncio.to_thread(looking.wait, PATIENCE)
        replica = await h.replica(await h.start(revision))

        assert replica.state is ReplicaState.STARTING, replica.failure
    looker.join()
