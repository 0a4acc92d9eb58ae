"""Reading an App's log: the newest lines from the end, a time from its beginning, and what comes while one waits."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from modalnomad.embedded.log_segments import (
    BLOCK,
    TIME_FIELD,
    Segment,
    app_folder,
    decoded,
    last_newline,
    segments,
)
from modalnomad.model.replica import LogLine

REMOVED: Final = "some lines are left out here: they were removed before they were read"
MTIME_SLACK: Final = 2.0
"""Seconds by which a file may seem older than its last line: file systems round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which lines. None and empty: any."""

    since: float | None = None
    """Unix time."""
    until: float | None = None
    function: str | None = None
    replica: str | None = None
    """`<number>.<epoch>`, or the whole name."""
    request_id: str | None = None
    search: str | None = None
    """Part of the text."""
    sources: frozenset[str] = frozenset()
    """Of stdout, stderr, system."""
    _needles: tuple[bytes, ...] = field(init=False, default=())
    """What stands in every wanted line as it is on disk: most lines are told by it alone."""

    def __post_init__(self) -> None:
        needles = []
        if self.function is not None:
            needles.append(f'"function":{_json(self.function)}')
        if self.request_id is not None:
            needles.append(f'"request_id":{_json(self.request_id)}')
        if self.search:
            needles.append(_json(self.search)[1:-1])
        raw = tuple(needle.encode("utf-8", "replace") for needle in needles)
        object.__setattr__(self, "_needles", raw)

    def maybe(self, raw: bytes) -> bool:
        """False: surely not this line, or none of these."""
        return all(needle in raw for needle in self._needles)

    def timely(self, raw: bytes) -> bool:
        """Is this line within the times?"""
        if self.since is None and self.until is None:
            return True
        try:
            moment = float(raw[len(TIME_FIELD) : raw.index(b",")]) if raw.startswith(TIME_FIELD) else 0.0
        except ValueError:
            return False
        return (self.since is None or moment >= self.since) and (self.until is None or moment <= self.until)

    def fits(self, line: LogLine) -> bool:
        """Whatever its time."""
        return (
            (self.function is None or line.function == self.function)
            and (self.request_id is None or line.request_id == self.request_id)
            and (not self.search or self.search in line.text)
            and (not self.sources or line.stream in self.sources)
            and (self.replica is None or f".{line.replica}".endswith(f".{self.replica}"))
        )


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class LogReader:
    """One App's log. What is there when it is made is read by `last` or `all`, what comes later by `more`."""

    def __init__(self, home: Path, environment: str, app: str, wanted: Wanted) -> None:
        self._folder = app_folder(home, environment, app)
        self._app = app
        self._environment = environment
        self._wanted = wanted
        self._then = segments(self._folder)
        self._file: IO[bytes] | None = None
        self._number = 0
        self._offset = 0
        while self._then and not self._open(self._then[-1]):
            self._then.pop()
        if self._file is not None:
            self._offset = last_newline(self._file.fileno(), os.fstat(self._file.fileno()).st_size)
        self._end = self._offset

    @property
    def found(self) -> bool:
        """Was there any log?"""
        return bool(self._then)

    def _open(self, segment: Segment) -> bool:
        try:
            file = segment.path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        self.close()
        self._file, self._number, self._offset = file, segment.number, 0
        return True

    def close(self) -> None:
        """Twice does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def last(self, count: int) -> list[LogLine]:
        """The newest `count` of the wanted lines, oldest first."""
        found: deque[LogLine] = deque()
        for segment in reversed(self._timely()):
            if len(found) >= count:
                break
            for block in self._blocks(segment, backwards=True):
                found.extendleft(reversed(self._lines(block)))
                if len(found) >= count:
                    break
        return list(found)[len(found) - min(count, len(found)) :]

    def all(self) -> Iterator[LogLine]:
        """All wanted lines, oldest first."""
        for segment in self._timely():
            for block in self._blocks(segment, backwards=False):
                yield from self._lines(block)

    def _timely(self) -> list[Segment]:
        """Without those that were last written to too early."""
        since = self._wanted.since
        if since is None:
            return self._then
        found = []
        for segment in self._then:
            with suppress(FileNotFoundError):
                if segment.path.stat().st_mtime >= since - MTIME_SLACK:
                    found.append(segment)
        return found

    def _blocks(self, segment: Segment, *, backwards: bool) -> Iterator[bytes]:
        try:
            file = segment.path.open("rb", buffering=0)
        except FileNotFoundError:
            return  # removed meanwhile: it was the oldest
        with file:
            last = segment == self._then[-1]
            end = self._end if last else last_newline(file.fileno(), os.fstat(file.fileno()).st_size)
            yield from (blocks_backwards if backwards else blocks)(file.fileno(), 0, end)

    def _lines(self, block: bytes) -> list[LogLine]:
        wanted = self._wanted
        if not wanted.maybe(block):
            return []
        found = []
        for raw in block.split(b"\n"):
            if raw and wanted.maybe(raw) and wanted.timely(raw):
                line = decoded(raw, self._app, self._environment)
                if line is not None and wanted.fits(line):
                    found.append(line)
        return found

    def more(self) -> Iterator[LogLine]:
        """What came since it was made, or since the last call, across segments, also those removed meanwhile."""
        while True:
            # Listed before reading: nothing is added to a segment once there is a newer one.
            present = segments(self._folder)
            if self._file is None:
                if not present:
                    return
                self._open(present[0])
                continue
            descriptor = self._file.fileno()
            size = os.fstat(descriptor).st_size
            end = last_newline(descriptor, size) if size != self._offset else size
            self._offset = min(self._offset, end)  # somebody emptied the file
            for block in blocks(descriptor, self._offset, end):
                self._offset += len(block)
                yield from self._lines(block)
            if not (later := [segment for segment in present if segment.number > self._number]):
                if os.fstat(descriptor).st_nlink:
                    return
                self.close()  # all was removed: the next one begins anew
                continue
            gap = later[0].number > self._number + 1
            if self._open(later[0]) and gap:
                yield LogLine(time.time(), self._app, "", "", "system", REMOVED, None, self._environment)


def blocks(descriptor: int, begin: int, end: int, size: int = BLOCK) -> Iterator[bytes]:
    """The bytes in between, in pieces that end with a newline; `end` is right behind one."""
    rest = b""
    while begin < end:
        data = os.pread(descriptor, min(size, end - begin), begin)
        if not data:
            return
        begin += len(data)
        data = rest + data
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if cut:
            yield data[:cut]


def blocks_backwards(descriptor: int, begin: int, end: int, size: int = BLOCK) -> Iterator[bytes]:
    """The same from the end, pieces of whole lines each in their own order."""
    rest = b""
    while begin < end:
        start = max(begin, end - size)
        data = os.pread(descriptor, end - start, start) + rest
        end = start
        cut = data.find(b"\n") + 1 if start > begin else 0
        if start > begin and not (0 < cut < len(data)):
            rest = data
            continue
        rest, data = data[:cut], data[cut:]
        yield data
