"""Output as lines: tags, cuts, rings, followers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from modalnomad_sdk.contract import LOG_TAG_CLOSE, LOG_TAG_OPEN

from modalnomad.embedded.logs import LEAST_LINES, RING_BYTES, Journal, Origin, ReplicaLog
from modalnomad.kit.log_lines import LINE_LIMIT, LineSplitter
from modalnomad.model.errors import NotFound
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import LogLine, PoolKey, ReplicaKey

KEY = ReplicaKey(PoolKey(RevisionId("r" * 32)), 0, 1)
OTHER = ReplicaKey(PoolKey(RevisionId("r" * 32)), 1, 1)


def split(*chunks: bytes) -> list[tuple[str | None, str]]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.end()


def texts(*chunks: bytes) -> list[str]:
    return [text for _, text in split(*chunks)]


def tagged(request_id: str, text: str) -> bytes:
    return f"{LOG_TAG_OPEN}{request_id}{LOG_TAG_CLOSE}{text}".encode()


def write(log: ReplicaLog, *lines: str) -> None:
    log.write("stdout", [(None, line) for line in lines])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\nb", ["a", "b"]),
        (b"\n\n", ["", ""]),
        (b"windows\r\nline", ["windows", "line"]),
        (b"a\rb\x0bc\x85\n", ["a\rb\x0bc\ufffd"]),
        ("žluťoučký 🐎\n".encode(), ["žluťoučký 🐎"]),
        (b"\xff\xfe\n", ["\ufffd\ufffd"]),
    ],
)
def test_lines_end_at_newlines_alone(data: bytes, expected: list[str]) -> None:
    assert texts(data) == expected


def test_a_tag_names_the_request_of_its_line_only() -> None:
    assert split(tagged("req-1", "a\nb\n") + tagged("req-2", "c")) == [("req-1", "a"), (None, "b"), ("req-2", "c")]


def test_what_only_looks_like_a_tag_stays_text() -> None:
    assert split(f"{LOG_TAG_OPEN}never closed\n".encode()) == [(None, f"{LOG_TAG_OPEN}never closed")]
    assert split(f"in {LOG_TAG_OPEN}the{LOG_TAG_CLOSE} middle".encode())[0][0] is None
    assert split(tagged("x" * 1000, "too long an id"))[0][0] is None


def test_an_overlong_line_goes_on_in_the_next_with_its_request() -> None:
    pieces = split(tagged("r", "x" * (2 * LINE_LIMIT)), b"y" * 10, b"\nnext\n")

    assert pieces[-1] == (None, "next")
    assert {request for request, _ in pieces[:-1]} == {"r"}
    assert "".join(text for _, text in pieces[:-1]) == "x" * (2 * LINE_LIMIT) + "y" * 10
    assert max(len(text) for _, text in pieces) <= LINE_LIMIT


def test_an_overlong_line_is_cut_between_characters() -> None:
    text = "x" + "🐎" * LINE_LIMIT

    assert "".join(texts(text.encode())) == text


def test_a_line_that_ends_at_the_cut_makes_no_empty_one() -> None:
    assert texts(b"x" * (LINE_LIMIT + 1), b"\n", b"z\n") == ["x" * LINE_LIMIT, "x", "z"]


async def read(journal: Journal, key: ReplicaKey | None = None, *, follow: bool = False) -> list[LogLine]:
    return [line async for line in journal.read(key, follow=follow)]


@asynccontextmanager
async def following(journal: Journal, key: ReplicaKey | None) -> AsyncIterator[AsyncIterator[LogLine]]:
    stream = journal.read(key, follow=True)
    async with aclosing(stream):  # type: ignore[type-var]
        yield stream


def logs(lines: int = 1000) -> tuple[Journal, ReplicaLog, ReplicaLog]:
    journal = Journal(lines)
    return journal, journal.open(Origin(KEY, "app", "f")), journal.open(Origin(OTHER, "app", "g"))


async def test_lines_of_all_replicas_come_in_the_order_they_were_written() -> None:
    journal, one, two = logs()
    write(one, "1")
    write(two, "2", "3")
    write(one, "4")

    assert [line.text for line in await read(journal)] == ["1", "2", "3", "4"]
    assert [line.text for line in await read(journal, OTHER)] == ["2", "3"]
    assert [(line.function, line.replica) for line in await read(journal, OTHER)] == [("g", str(OTHER))] * 2


async def test_the_newest_lines_are_kept() -> None:
    journal, one, _ = logs(lines=300)
    for number in range(1000):
        write(one, str(number))

    assert [line.text for line in await read(journal)] == [str(n) for n in range(700, 1000)]


async def test_the_end_is_kept_whatever_the_settings_say() -> None:
    journal, one, _ = logs(lines=0)
    write(one, *map(str, range(1000)))

    assert len(await read(journal)) == LEAST_LINES
    assert one.tail(2) == "998\n999"


async def test_the_ring_is_bounded_in_bytes_too() -> None:
    journal, one, _ = logs(lines=10_000)
    for _ in range(200):
        write(one, "x" * LINE_LIMIT)

    assert sum(len(line.text) for line in await read(journal)) <= RING_BYTES


async def test_a_follower_gets_old_and_new_lines_and_ends_with_the_replica() -> None:
    journal, one, two = logs()
    write(one, "old")
    reading = asyncio.ensure_future(read(journal, KEY, follow=True))
    await asyncio.sleep(0)
    write(two, "not this")
    write(one, "new")
    await asyncio.sleep(0)
    write(one, "last")
    one.end()

    assert [line.text for line in await reading] == ["old", "new", "last"]


async def test_a_follower_of_all_goes_on_when_one_ends() -> None:
    journal, one, two = logs()
    async with following(journal, None) as stream:
        write(one, "a")
        assert (await anext(stream)).text == "a"
        one.end()
        journal.forget(KEY)
        write(two, "b")

        assert (await anext(stream)).text == "b"


async def test_a_follower_that_fell_behind_is_told_so() -> None:
    journal, one, _ = logs(lines=LEAST_LINES)
    async with following(journal, KEY) as stream:
        write(one, "first")
        assert (await anext(stream)).text == "first"

        write(one, *map(str, range(1000)))
        missing = await anext(stream)

        assert (missing.stream, missing.text[:14]) == ("system", "some lines are")
        assert (await anext(stream)).text == str(1000 - LEAST_LINES)


async def test_unknown_replicas_have_no_log() -> None:
    journal, _, _ = logs()
    journal.forget(KEY)

    with pytest.raises(NotFound):
        await read(journal, KEY)


def test_a_failures_detail_is_the_programs_own_output() -> None:
    _, one, _ = logs()
    write(one, "theirs")
    one.write("system", [(None, "ours")])
    one.write("stderr", [("req", "theirs too")])

    assert one.tail(10) == "theirs\ntheirs too"
