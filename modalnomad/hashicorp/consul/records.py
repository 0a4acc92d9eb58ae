"""Records as Consul's KV holds them: keys, encoding, and what to do with one that cannot be read. Pure."""

from __future__ import annotations

import gzip
import json
import logging
import secrets
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from modalnomad.hashicorp.consul.api import Entry, dumped
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendRefused, Problem
from modalnomad.model.routes import Token
from modalnomad.ports.publishing import check_app, check_environment, check_token_id

logger = logging.getLogger("modalnomad.discovery")

FORMAT: Final = 1
APPS: Final = "apps"
TOKENS: Final = "tokens"
KINDS: Final = (APPS, TOKENS)
GUARD: Final = "_guard"
"""Key beside the environments that every write of a record writes too: two writers exclude each other by it, and as it
is never removed, records that vanish without it vanished by mistake."""
GUARD_TEXT: Final = "Written with every record of modalnomad below this key: leave it."
UNPACKED_LIMIT: Final = 64 * 1024 * 1024
"""Bytes a record may unpack to."""

Record = AppRecord | Token


def guard_value() -> bytes:
    """Another one each time: Consul takes a write of an equal value for none, and then its index excludes nobody."""
    return f"{GUARD_TEXT} {secrets.token_hex(8)}\n".encode("ascii")


def part(name: str) -> str:
    """A name as a part of a key. Consul (1.22) refuses keys that end like a file (`.py`, `.com`), and URLs have no
    place for the names . and ..; no name has a comma."""
    return name.replace(".", ",")


@dataclass(frozen=True, slots=True)
class Keys:
    """Where things are below the prefix (`consul.prefix`)."""

    prefix: str

    def folder(self, kind: str) -> str:
        """All records of a kind are below it."""
        return f"{self.prefix}/{kind}/"

    def guard(self, kind: str) -> str:
        """See GUARD."""
        return f"{self.prefix}/{kind}/{GUARD}"

    def app(self, name: str, environment: str) -> str:
        """Raises UserError."""
        return f"{self.prefix}/{APPS}/{check_environment(environment)}/{part(check_app(name))}"

    def token(self, id: str, environment: str) -> str:
        """Raises UserError, NotFound."""
        return f"{self.prefix}/{TOKENS}/{check_environment(environment)}/{check_token_id(id)}"

    def lock(self, name: str) -> str:
        """Of a lock's holder."""
        return f"{self.prefix}/locks/{part(name)}"


def encode(record: Record) -> bytes:
    """The value of its key; the same for equal records. Apps are compressed: Consul takes 512 KiB at most."""
    kind = "app" if isinstance(record, AppRecord) else "token"
    raw = dumped({"kind": kind, "format": FORMAT, "content": record.model_dump(mode="json")})
    return gzip.compress(raw, mtime=0) if kind == "app" else raw


def decode(entry: Entry, kind: str) -> Record:
    """Raises BackendRefused, which names the key and nothing of its value."""
    content = _content(entry, "app" if kind == APPS else "token")
    record: Record
    try:
        record = AppRecord.model_validate(content) if kind == APPS else Token.model_validate(content)
    except ValidationError as error:
        raise _damaged(entry.key, f"{error.error_count()} wrong fields") from None
    name = record.app if isinstance(record, AppRecord) else record.id
    # A record that was copied to another key would be served twice.
    if entry.key.split("/")[-2:] != [record.environment, part(name)]:
        raise _damaged(entry.key, f"it is the record of {name} in environment {record.environment}")
    return record


def _content(entry: Entry, kind: str) -> dict[str, Any]:
    try:
        raw = _unpacked(entry.value)
        record = json.loads(raw)
    except (ValueError, RecursionError, zlib.error, EOFError):
        # Not chained: the decoder's error carries the whole document.
        raise _damaged(entry.key, f"it is no {kind} record") from None
    if not isinstance(record, dict) or record.get("kind") != kind or not isinstance(record.get("format"), int):
        raise _damaged(entry.key, f"it is no {kind} record")
    if record["format"] > FORMAT:
        raise BackendRefused(
            f"Consul's key {entry.key} was written by a newer modalnomad (format {record['format']}, this one knows "
            f"{FORMAT})",
            "use the newer modalnomad here too; the record is left as it is",
        )
    content = record.get("content")
    if not isinstance(content, dict):
        raise _damaged(entry.key, f"it is no {kind} record")
    return content


def _unpacked(value: bytes) -> bytes:
    if not value.startswith(b"\x1f\x8b"):
        return value
    unpacker = zlib.decompressobj(wbits=31)
    raw = unpacker.decompress(value, UNPACKED_LIMIT)
    if not unpacker.eof:
        raise ValueError("cut off, or too large")
    return raw


def _damaged(key: str, why: str) -> BackendRefused:
    return BackendRefused(
        f"Consul's key {key} is damaged: {why}",
        f"restore it from a copy, or remove it (consul kv delete {key}) and deploy again",
    )


@dataclass(frozen=True, slots=True)
class _Read:
    entry: Entry
    record: Record | None
    """None: it cannot be read now."""
    good: Entry | None
    """What could be read last under this key."""
    good_record: Record | None
    error: BackendRefused | None


class Reader:
    """Entries → records, with the last readable one of each key remembered. Decodes only what changed. Safe for several
    threads."""

    def __init__(self, keys: Keys, kind: str) -> None:
        self._folder = keys.folder(kind)
        self._kind = kind
        self._read: dict[str, _Read] = {}
        self._guard = threading.Lock()

    def remember(self, good: Iterable[Entry]) -> None:
        """What could be read last, of a former process."""
        with self._guard:
            for entry in good:
                self._look(entry)

    def records(self, entries: Iterable[Entry], *, whole: bool = False) -> tuple[Record, ...]:
        """By key. One that cannot be read is logged once, and its last readable content stands in for it. `whole`:
        what is not among them is no more, and forgotten."""
        with self._guard:
            found = [self._look(entry) for entry in entries if self._ours(entry)]
            if whole:
                self._read = {read.entry.key: read for read in found}
        return tuple(read.good_record for read in found if read.good_record is not None)

    def problems(self, entries: Iterable[Entry]) -> tuple[Problem, ...]:
        """Of those that cannot be read now."""
        with self._guard:
            found = [self._look(entry) for entry in entries if self._ours(entry)]
        return tuple(
            Problem(
                f"Consul key {read.entry.key}",
                read.error.message.removeprefix(f"Consul's key {read.entry.key} ") + "." + _then(read.error),
            )
            for read in found
            if read.error is not None
        )

    @property
    def stand_ins(self) -> tuple[Entry, ...]:
        """The last readable contents of those that cannot be read now."""
        with self._guard:
            found = tuple(self._read.values())
        return tuple(read.good for read in found if read.error is not None and read.good is not None)

    def _ours(self, entry: Entry) -> bool:
        # Consul's UI makes keys that end in / for folders.
        return entry.key != self._folder + GUARD and not entry.key.endswith("/")

    def _look(self, entry: Entry) -> _Read:
        last = self._read.get(entry.key)
        if last is not None and last.entry == entry:
            return last
        try:
            record = decode(entry, self._kind)
            read = _Read(entry, record, entry, record, None)
        except BackendRefused as error:
            read = _Read(entry, None, last.good if last else None, last.good_record if last else None, error)
            if last is None or last.error is None or last.error.message != error.message:
                what = "it is left out" if read.good is None else "its last readable content stays in force"
                logger.error("%s; %s.%s", error.message, what, _then(error))
        self._read[entry.key] = read
        return read


def _then(error: BackendRefused) -> str:
    hint = error.hint or ""
    return f" {hint[:1].upper()}{hint[1:]}."
