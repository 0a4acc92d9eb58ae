"""A long-running command ends with the first of its parts that ends."""

from __future__ import annotations

import asyncio
import gc

import pytest

from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError
from modalnomad.wiring.death import Death


async def ended() -> None:
    raise ValueError("no more")


async def test_the_first_part_that_ends_is_told() -> None:
    death = Death("up")
    waiting = asyncio.ensure_future(death.wait())
    await death.watch("router", ended)
    death.of("logs", KeyError("later"))
    with pytest.raises(BackendError, match=r"^up cannot go on: router ended: no more$") as caught:
        await waiting
    assert caught.value.hint


async def test_who_gives_up_waiting_leaves_it_to_others() -> None:
    death = Death("up")
    one, other = asyncio.ensure_future(death.wait()), asyncio.ensure_future(death.wait())
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait([one])
    death.of("router", ValueError("no more"))
    with pytest.raises(BackendError):
        await other


async def test_an_end_nobody_waits_for_is_no_warning() -> None:
    death = Death("up")
    death.of("router", ValueError("no more"))
    death.close()


async def test_parts_that_never_began_are_no_warning() -> None:
    """A part had ended before its command came to wait: all others end at once, before their first step."""
    death = Death("up")
    death.of("logs", ValueError("no more"))
    async with Tasks("test", death.of) as tasks:
        tasks.guard(ended(), "replicas")
        tasks.spawn(death.watch("router", ended), "router")
        with pytest.raises(BackendError):
            await death.wait()
    gc.collect()


async def test_a_part_that_comes_too_late_is_no_warning() -> None:
    tasks = Tasks("test")
    await tasks.close()
    with pytest.raises(RuntimeError, match="is closing"):
        tasks.guard(ended(), "replicas")
    gc.collect()
