"""Logs on disk: whatever the writer suffers, readers see every whole line once and in order."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modalnomad.embedded.log_reader import REMOVED, LogReader, Wanted, blocks, blocks_backwards
from modalnomad.embedded.log_segments import LogWriter, app_folder, app_named, decoded, encoded, segments
from modalnomad.model.replica import LogLine

ENVIRONMENT, APP = "main", "app"
LIMIT = 40_000
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def line(text: str, **fields: str) -> LogLine:
    return LogLine(1.5, APP, "f", "r.0.1", "stdout", text, fields.get("request_id"), ENVIRONMENT)


@given(TEXT, st.none() | TEXT, TEXT)
def test_a_line_comes_back_as_it_was(text: str, request: str | None, function: str) -> None:
    written = LogLine(1763792652.123456, APP, function, "r.0.1", "stderr", text, request, ENVIRONMENT)
    raw = encoded(written)

    assert raw.count(b"\n") == 1
    assert decoded(raw, APP, ENVIRONMENT) == written
    assert Wanted(search=text, request_id=request, function=function).maybe(raw)


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True))
def test_every_app_has_a_folder_of_its_own(app: str) -> None:
    folder = app_folder(Path("/home"), ENVIRONMENT, app)

    assert folder.parent == Path("/home/logs/main")
    assert folder.name not in {".", ".."}
    assert app_named(folder.name) == app


@given(st.lists(st.binary(max_size=300).map(lambda data: data.replace(b"\n", b"")), max_size=60), st.integers(1, 400))
@settings(max_examples=60)
def test_blocks_hold_whole_lines(found: list[bytes], size: int) -> None:
    data = b"".join(text + b"\n" for text in found)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        forwards = list(blocks(file.fileno(), 0, len(data), size))
        backwards = list(blocks_backwards(file.fileno(), 0, len(data), size))

    assert b"".join(forwards) == data
    assert b"".join(reversed(backwards)) == data
    assert all(block.endswith(b"\n") for block in forwards + backwards)


class LogLife(RuleBasedStateMachine):
    """A writer that dies in the middle of lines, limits that take away the oldest, readers that come and follow."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="log-")
        self.home = Path(self.folder.name)
        self.writer = self.new_writer()
        self.written: list[str] = []
        self.seen: list[str] = []
        self.from_here = 0
        self.reader = self.new_reader()
        self.torn = False

    def new_writer(self) -> LogWriter:
        return LogWriter(app_folder(self.home, ENVIRONMENT, APP), LIMIT)

    def new_reader(self) -> LogReader:
        return LogReader(self.home, ENVIRONMENT, APP, Wanted())

    @rule(count=st.integers(1, 20), size=st.integers(0, 900))
    def write(self, count: int, size: int) -> None:
        texts = [f"{len(self.written) + n} {'x' * size}" for n in range(count)]
        assert self.writer.append([encoded(line(text)) for text in texts]) == (count, None)
        self.written += texts
        self.torn = False

    @rule(part=st.binary(min_size=1, max_size=200).map(lambda data: data.replace(b"\n", b" ")))
    def die_within_a_line(self, part: bytes) -> None:
        if found := segments(app_folder(self.home, ENVIRONMENT, APP)):
            with found[-1].path.open("ab") as file:
                file.write(part)
            self.torn = True
        self.writer = self.new_writer()

    @rule()
    def follow(self) -> None:
        self.seen += [found.text for found in self.reader.more() if found.text != REMOVED]

    @rule()
    def come_anew(self) -> None:
        self.reader.close()
        self.reader = self.new_reader()
        self.seen, self.from_here = [], len(self.written)

    @invariant()
    def all_whole_lines_are_there_once_and_in_order(self) -> None:
        with closing(self.new_reader()) as reader:
            texts = [found.text for found in reader.all()]
            assert texts == self.written[len(self.written) - len(texts) :]
            assert len(texts) >= min(len(self.written), 20)
            assert [found.text for found in reader.last(7)] == texts[-7:]
            assert list(reader.more()) == []

    @invariant()
    def a_follower_missed_nothing_but_what_was_removed(self) -> None:
        due = self.written[self.from_here :]
        positions = [due.index(text) for text in self.seen]
        assert positions == sorted(set(positions))

    @invariant()
    def it_stays_within_its_limit(self) -> None:
        sizes = [segment.path.stat().st_size for segment in segments(app_folder(self.home, ENVIRONMENT, APP))]
        assert sum(sizes) <= LIMIT + 400  # and what a dying writer left

    def teardown(self) -> None:
        self.follow()
        kept = self.written[self.from_here :][-20:]
        assert self.seen[len(self.seen) - len(kept) :] == kept
        self.reader.close()
        self.folder.cleanup()


LogLife.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestLogLife = LogLife.TestCase
