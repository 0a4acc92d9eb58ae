"""The last known good table on disk: what a router serves that starts while Consul is down."""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modalnomad.hashicorp.consul.api import Entry, Found, dumped

logger = logging.getLogger("modalnomad.consul")

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Table:
    """All entries of one kind as they were last seen, and the last readable contents of those that were not readable.
    Of tokens it holds hashes only, as Consul does."""

    found: Found[Entry]
    stand_ins: tuple[Entry, ...] = ()


class Cache:
    """One file, only for its owner. What cannot be read or written is logged, and done without."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._failed = ""

    def load(self) -> tuple[dict[str, Table], float]:
        """Kind → table, and the Unix time at which it was last what Consul says. Nothing: there is none."""
        try:
            raw = self._path.read_bytes()
            content = json.loads(raw)
            if content["format"] != FORMAT or content["prefix"] != self._prefix:
                return {}, 0.0
            tables = {
                kind: Table(
                    Found(_entries(table["entries"]), int(table["index"])),
                    _entries(table["stand_ins"]),
                )
                for kind, table in content["tables"].items()
            }
            return tables, float(content["saved_at"])
        except FileNotFoundError:
            return {}, 0.0
        except OSError as error:
            logger.error("cannot read %s: %s; it is done without", self._path, error.strerror or error)
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.error("%s is damaged; it is done without, and replaced as soon as Consul answers", self._path)
        return {}, 0.0

    def save(self, tables: Mapping[str, Table]) -> None:
        """At once or not at all. Not for two threads at once."""
        content = {
            "format": FORMAT,
            "prefix": self._prefix,
            "saved_at": time.time(),
            "tables": {
                kind: {
                    "index": table.found.index,
                    "entries": [_json(entry) for entry in table.found.items],
                    "stand_ins": [_json(entry) for entry in table.stand_ins],
                }
                for kind, table in tables.items()
            },
        }
        temporary = self._path.with_name(f".{self._path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(dumped(content))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
            self._failed = ""
        except OSError as error:
            if self._failed != (reason := error.strerror or str(error)):
                self._failed = reason
                logger.error(
                    "cannot write %s: %s; a router that starts while Consul is down lacks it", self._path, reason
                )


def _json(entry: Entry) -> list[Any]:
    return [entry.key, entry.index, base64.b64encode(entry.value).decode("ascii")]


def _entries(items: list[Any]) -> tuple[Entry, ...]:
    return tuple(Entry(str(key), base64.b64decode(value), int(index)) for key, index, value in items)
