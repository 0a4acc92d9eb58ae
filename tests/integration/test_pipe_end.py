"""The reading end of a pipe: all that comes, to the end, and a descriptor that is closed once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from modalnomad.kit.pipe_end import PipeEnd
from tests.support.raw import WAIT

BOTH_LOOPS = True


@pytest.fixture
def ends() -> Iterator[list[int]]:
    """Reading and writing end; those that are left in the list are closed with the test."""
    pair = list(os.pipe())
    yield pair
    for descriptor in pair:
        os.close(descriptor)


async def test_all_of_it_comes_and_then_the_end(ends: list[int]) -> None:
    pipe, writer = PipeEnd(ends.pop(0)), ends.pop()
    sent = os.urandom(300_000)

    def write() -> None:
        with os.fdopen(writer, "wb", 0) as file:
            file.write(sent)

    writing = asyncio.get_running_loop().run_in_executor(None, write)
    read = b""
    async with asyncio.timeout(WAIT):
        while data := await pipe.read():
            read += data
    await writing
    assert read == sent
    assert await pipe.read() == b"", "it stays the end"
    pipe.close()


async def test_what_is_there_is_the_last_though_others_hold_the_pipe(ends: list[int]) -> None:
    pipe = PipeEnd(ends.pop(0))
    reading = asyncio.get_running_loop().create_task(pipe.read())
    await asyncio.sleep(0.01)
    pipe.end()
    async with asyncio.timeout(WAIT):
        assert await reading == b""
        assert await pipe.read() == b""


async def test_the_last_words_are_read(ends: list[int]) -> None:
    pipe = PipeEnd(ends.pop(0))
    os.write(ends[0], b"the last words")
    pipe.end()
    assert [await pipe.read(), await pipe.read()] == [b"the last words", b""]
    pipe.close()


@pytest.mark.parametrize("reads", [True, False])
async def test_its_number_is_free_at_once_and_left_alone_from_then_on(ends: list[int], reads: bool) -> None:
    number = ends.pop(0)
    pipe = PipeEnd(number)
    reading = asyncio.get_running_loop().create_task(pipe.read()) if reads else None
    await asyncio.sleep(0.01)
    pipe.close()
    assert os.dup2(ends[0], number) == number  # somebody else's file
    ends.append(number)
    pipe.close()
    if reading is not None:
        assert await reading == b""
    await asyncio.sleep(0.01)
    os.fstat(number)
    assert await pipe.read() == b""


async def test_a_reader_that_is_cancelled_leaves_it_to_the_next(ends: list[int]) -> None:
    pipe = PipeEnd(ends.pop(0))
    reading = asyncio.get_running_loop().create_task(pipe.read())
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait([reading])
    os.write(ends[0], b"one")
    assert await pipe.read() == b"one"
    pipe.close()
