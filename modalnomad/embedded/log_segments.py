"""How logs lie on disk: `<home>/logs/<environment>/<app>/<number>.jsonl`, a JSON object a line, the oldest lowest.

One process writes (the one that holds the home), any number read meanwhile. A line counts once its newline is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from json.encoder import encode_basestring
from pathlib import Path
from typing import Final

from modalnomad.embedded.store import FILE_MODE, make_folder
from modalnomad.model.replica import LogLine

SUFFIX: Final = ".jsonl"
SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""Of one file; less where an App's limit is small."""
SEGMENTS: Final = 8
"""Files an App's limit is spread over at least: the oldest goes as a whole."""
LEAST_SEGMENT: Final = 4096
BLOCK: Final = 256 * 1024
"""Bytes read at once."""
TIME_FIELD: Final = b'{"time":'
"""What every line begins with: a reader tells a line's time without decoding it."""


def logs_folder(home: Path) -> Path:
    """Where the logs of all Apps of a home lie."""
    return home / "logs"


def app_folder(home: Path, environment: str, app: str) -> Path:
    """One App's. An App may be named `..`, a folder may not."""
    return logs_folder(home) / environment / (f"%2E{app[1:]}" if app.startswith(".") else app)


def app_named(folder: str) -> str:
    """The App whose folder has this name."""
    return f".{folder.removeprefix('%2E')}" if folder.startswith("%2E") else folder


def encoded(line: LogLine) -> bytes:
    """With its newline. The App and its environment are told by the folder."""
    request = "null" if line.request_id is None else encode_basestring(line.request_id)
    return (
        f'{{"time":{line.time:.6f},"function":{encode_basestring(line.function)},'
        f'"replica":{encode_basestring(line.replica)},"stream":"{line.stream}","request_id":{request},'
        f'"text":{encode_basestring(line.text)}}}\n'
    ).encode("utf-8", "replace")


def decoded(raw: bytes, app: str, environment: str) -> LogLine | None:
    """None for what is no line of ours: half of one, or a damaged one."""
    try:
        found = json.loads(raw)
        return LogLine(
            float(found["time"]),
            app,
            str(found["function"]),
            str(found["replica"]),
            found["stream"],
            str(found["text"]),
            found["request_id"],
            environment,
        )
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of an App's log."""

    number: int
    path: Path

    @classmethod
    def at(cls, folder: Path, number: int) -> Segment:
        """The one with this number."""
        return cls(number, folder / f"{number:08d}{SUFFIX}")


def segments(folder: Path) -> list[Segment]:
    """All, oldest first; none where there is no such folder. Raises OSError."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return sorted(Segment(int(number), folder / f"{number}{SUFFIX}") for number in numbers if number.isdecimal())


def last_newline(descriptor: int, end: int) -> int:
    """Length of the whole lines among the file's first `end` bytes."""
    while end > 0:
        begin = max(0, end - BLOCK)
        at = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


class LogWriter:
    """Appends to one App's log, and keeps it within `limit` bytes. Blocking: not for the event loop.

    No file stays open in between, so whatever is removed by others meanwhile is simply gone.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._segment_bytes = max(LEAST_SEGMENT, min(SEGMENT_BYTES, limit // SEGMENTS))
        self._known: tuple[int, int] | None = None
        """Number and size of the segment as the last write left it."""

    def append(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """How many were written, and what stopped it. A line is written whole or not at all."""
        written = 0
        try:
            make_folder(self._folder)
            found = segments(self._folder)
            number = found[-1].number if found else 1
            while written < len(lines):
                count, full = self._write(Segment.at(self._folder, number), lines[written:])
                written += count
                number += full
            self._shrink()
        except OSError as error:
            return written, error
        return written, None

    def _write(self, segment: Segment, lines: Sequence[bytes]) -> tuple[int, bool]:
        """How many of them fit, and whether the next line needs another segment."""
        descriptor = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        try:
            size = self._repaired(descriptor, segment.number)
            count = _fitting(lines, self._segment_bytes - size, empty=size == 0)
            try:
                _write_all(descriptor, b"".join(lines[:count]))
            except OSError:
                self._known = None
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
            self._known = (segment.number, os.fstat(descriptor).st_size)
            return count, count < len(lines)
        finally:
            os.close(descriptor)

    def _repaired(self, descriptor: int, number: int) -> int:
        """The file's size, without the half of a line that a writer that died may have left."""
        size = os.fstat(descriptor).st_size
        if self._known == (number, size):
            return size
        whole = last_newline(descriptor, size)
        if whole < size:
            os.ftruncate(descriptor, whole)
        return whole

    def _shrink(self) -> None:
        sizes = [(segment, _size(segment.path)) for segment in segments(self._folder)]
        total = sum(size for _, size in sizes)
        for segment, size in sizes[:-1]:
            if total <= self._limit:
                return
            segment.path.unlink(missing_ok=True)
            total -= size


def _fitting(lines: Sequence[bytes], room: int, *, empty: bool) -> int:
    """How many of the lines go into `room` bytes; one at least into an empty file."""
    for count, line in enumerate(lines):
        room -= len(line)
        if room < 0 and (count or not empty):
            return count
    return len(lines)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def remove_older(home: Path, moment: float) -> None:
    """Remove what was last written to before `moment` (Unix time), of all Apps, and folders that are left empty."""
    for folder in app_folders(home):
        for segment in segments(folder):
            with suppress(FileNotFoundError):
                if segment.path.stat().st_mtime < moment:
                    segment.path.unlink()
        with suppress(OSError):  # not empty
            folder.rmdir()


def app_folders(home: Path, environment: str | None = None) -> Iterator[Path]:
    """Of every App that has a log. Raises OSError."""
    root = logs_folder(home)
    environments = [environment] if environment is not None else _folders(root)
    for name in environments:
        for app in _folders(root / name):
            yield root / name / app


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
