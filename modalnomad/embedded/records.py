"""What discovery keeps on disk: one file per App, one per token. Read, write, compare and set."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from modalnomad.embedded.store import locked, read_record, remove_file, translated, write_record
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendError, BackendRefused, NotFound, Problem
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import PublishApp, WithdrawApp
from modalnomad.ports.publishing import (
    check_app,
    check_change,
    check_environment,
    check_serial,
    check_token_id,
    no_app,
    no_token,
)

logger = logging.getLogger("modalnomad.discovery")

FORMAT: Final = 1
APP: Final = "app"
TOKEN: Final = "token"
APPS: Final = "apps"
TOKENS: Final = "tokens"
KINDS: Final = (APPS, TOKENS)

Fingerprint = frozenset[tuple[str, int, int, int]]
"""Path, inode, modification time (ns) and size: files are replaced, so any change shows."""


@dataclass(frozen=True, slots=True)
class _Known:
    """`record`: the last readable content, None if there never was one. `error`: why what is there now is not it."""

    path: str
    stamp: tuple[int, int, int] | None
    record: AppRecord | Token | None
    error: BackendError | None


class Records:
    """`<home>/discovery/{apps,tokens}/<environment>/<name>.json`, with the last readable content of each remembered.

    Safe for several threads. A file is read again only when it was replaced.
    """

    def __init__(self, home: Path) -> None:
        self._root = home / "discovery"
        self._known: dict[str, _Known] = {}
        """Path → what was last found there."""
        self._closed: dict[str, _Known] = {}
        """Folders that cannot be read."""
        self._guard = threading.Lock()

    # --- reading ---------------------------------------------------------------------------------------------

    def folders(self, *kinds: str) -> Fingerprint:
        """Differs after any write, unless it came within the same tick of the file system's clock as an earlier one.
        Costs a look at each environment's folder, however many records they hold. Raises OSError."""
        found = set()
        for kind in kinds or KINDS:
            root = str(self._root / kind)
            for path in (root, *(entry.path for entry in _scan(root) if entry.is_dir())):
                if (status := _status(path)) is not None:
                    found.add((path, status.st_ino, status.st_mtime_ns, 0))
        return frozenset(found)

    def all_apps(self) -> tuple[AppRecord, ...]:
        """Every App's record, by path. One that cannot be read is logged once, and its last readable content stands in
        for it. Raises BackendRefused when the folders cannot be read."""
        return tuple(known.record for known in self._read_all(APPS) if isinstance(known.record, AppRecord))

    def all_tokens(self, environment: str | None = None) -> tuple[Token, ...]:
        """Every token, or those of one environment; unreadable ones as in `all_apps`."""
        found = (known.record for known in self._read_all(TOKENS))
        return tuple(t for t in found if isinstance(t, Token) and environment in {None, t.environment})

    def problems(self) -> tuple[Problem, ...]:
        """Of records that cannot be read now."""
        return tuple(
            Problem(known.path, known.error.message.removeprefix(f"{known.path} ") + "." + _then(known.error.hint))
            for kind in KINDS
            for known in self._read_all(kind)
            if known.error is not None
        )

    def app(self, name: str, environment: str) -> AppRecord | None:
        """One App's record as it is now. Raises BackendRefused when it cannot be read."""
        return self._load_app(self._app_path(name, environment))

    def environments(self) -> frozenset[str]:
        """Those that have a folder. Raises BackendRefused."""
        with translated(f"read {self._root}"):
            return frozenset(entry.name for kind in KINDS for entry in _scan(str(self._root / kind)) if entry.is_dir())

    def _read_all(self, kind: str) -> list[_Known]:
        root = f"{self._root / kind}{os.sep}"
        with self._guard, translated(f"read {root}"):
            present = self._paths(kind)
            for path in [path for path in self._known if path.startswith(root) and path not in present]:
                del self._known[path]
            found = [known for path in present if (known := self._look(kind, path)) is not None]
            return [*found, *(failed for path, failed in self._closed.items() if path.startswith(root))]

    def _look(self, kind: str, path: str) -> _Known | None:
        """What the file holds, read again only if it is another one. None: removed meanwhile."""
        last = self._known.get(path)
        stays = last.record if last else None
        stamp = None
        try:
            with translated(f"read {path}"):
                status = _status(path)
            if status is None:
                return None
            stamp = _stamp(status)
            if last is not None and last.stamp == stamp:
                return last
            record = (self._load_app if kind == APPS else self._load_token)(Path(path))
            known = _Known(path, stamp, record, None)
        except BackendError as error:
            # What the system refused this time may go the next time; what is damaged stays so until it is replaced.
            passing = isinstance(error.__cause__, OSError)
            known = _Known(path, None if passing else stamp, stays, error)
            if last is None or last.error is None or last.error.message != error.message:
                _complain(error, stays is not None)
        self._known[path] = known
        return known

    def _paths(self, kind: str) -> dict[str, None]:
        """Of all records, sorted. One folder that cannot be read hides no other: what was known of it stays."""
        found: list[str] = []
        for folder in [entry.path for entry in _scan(str(self._root / kind)) if entry.is_dir()]:
            try:
                with translated(f"read {folder}"):
                    found += [entry.path for entry in _scan(folder) if entry.name.endswith(".json")]
            except BackendError as error:
                if folder not in self._closed:
                    _complain(error, True)
                self._closed[folder] = _Known(folder, None, None, error)
                found += [path for path in self._known if path.startswith(f"{folder}{os.sep}")]
            else:
                self._closed.pop(folder, None)
        return dict.fromkeys(sorted(found))

    def _load_app(self, path: Path) -> AppRecord | None:
        content = read_record(path, APP, FORMAT)
        if content is None:
            return None
        with _validated(path):
            record = AppRecord.model_validate(content)
        _check_place(path, (record.environment, record.app), f"App {record.app}")
        return record

    def _load_token(self, path: Path) -> Token | None:
        content = read_record(path, TOKEN, FORMAT)
        if content is None:
            return None
        with _validated(path):
            token = Token.model_validate(content)
        _check_place(path, (token.environment, token.id), f"token {token.id}")
        return token

    def _mentioning(self, hosts: Collection[str], but: Path) -> Iterator[AppRecord]:
        """The Apps whose files contain one of these words: the others are not decoded. Unreadable ones are logged."""
        words = [json.dumps(host).encode("ascii") for host in hosts]
        with self._guard:
            paths = self._paths(APPS)
        for path in paths if words else ():
            try:
                raw = Path(path).read_bytes()
            except FileNotFoundError:
                continue
            if path != str(but) and any(word in raw for word in words):
                try:
                    record = self._load_app(Path(path))
                except BackendError as error:
                    _complain(error, False)
                else:
                    if record is not None:
                        yield record

    # --- writing ---------------------------------------------------------------------------------------------

    def publish(self, change: PublishApp) -> None:
        """Compare and set, across processes."""
        record = change.record
        path = self._app_path(record.app, record.environment)
        with self._locked():
            hosts = {host for route in record.routes for host in route.hosts}
            with translated(f"read {self._root / APPS}"):
                check_change(change, self._load_app(path), self._mentioning(hosts, path))
            write_record(path, APP, FORMAT, record.model_dump(mode="json"))

    def withdraw(self, change: WithdrawApp) -> None:
        """Raises NotFound, BackendConflict."""
        path = self._app_path(change.app, change.environment)
        with self._locked():
            if change.expected is not None and (found := self._load_app(path)) is not None:
                check_serial(found.app, found.environment, found.serial, change.expected)
            self._remove(path, no_app(change.app, change.environment))

    def put_token(self, token: Token) -> None:
        """Create or replace."""
        path = self._token_path(token.id, token.environment)
        with self._locked():
            write_record(path, TOKEN, FORMAT, token.model_dump(mode="json"))

    def delete_token(self, id: str, environment: str) -> None:
        """Raises NotFound."""
        path = self._token_path(id, environment)
        with self._locked():
            self._remove(path, no_token(id, environment))

    def _remove(self, path: Path, missing: NotFound) -> None:
        with translated(f"remove {path}"):
            try:
                remove_file(path)
            except FileNotFoundError:
                raise missing from None

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._root / "lock")

    def _app_path(self, name: str, environment: str) -> Path:
        return self._root / "apps" / check_environment(environment) / f"{check_app(name)}.json"

    def _token_path(self, id: str, environment: str) -> Path:
        return self._root / "tokens" / check_environment(environment) / f"{check_token_id(id)}.json"


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _complain(error: BackendError, stays: bool) -> None:
    what = "its last readable content stays in force" if stays else "it is left out"
    logger.error("%s; %s.%s", error.message, what, _then(error.hint))


def _then(hint: str | None) -> str:
    return f" {hint[:1].upper()}{hint[1:]}." if hint else ""


def _check_place(path: Path, own: tuple[str, str], what: str) -> None:
    """A record that was copied to another name would be served twice."""
    if (path.parent.name, path.stem) != own:
        raise BackendRefused(
            f"{path} is damaged: it is the record of {what} in environment {own[0]}",
            "remove the file, or rename it back",
        )


@contextmanager
def _validated(path: Path) -> Iterator[None]:
    """A record of the right kind that does not hold what it should."""
    try:
        yield
    except (KeyError, TypeError, ValidationError) as error:
        what = f"{error.error_count()} wrong fields" if isinstance(error, ValidationError) else f"field {error}"
        raise BackendRefused(
            f"{path} is damaged ({what})", "restore the file from a copy, or remove it and deploy again"
        ) from error
