"""What discovery keeps on disk: one file per App, one per token. Read, write, compare and set."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from modalnomad.embedded.store import FileLock, read_record, translated, write_record
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendConflict, BackendError, BackendRefused, NotFound, UserError
from modalnomad.model.ids import ENVIRONMENT_NAME, NAME
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import PublishApp, WithdrawApp

logger = logging.getLogger("modalnomad.discovery")

FORMAT: Final = 1
APP: Final = "app"
TOKEN: Final = "token"
TOKEN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

Fingerprint = frozenset[tuple[str, int, int, int]]
"""Path, inode, modification time (ns) and size of every record: files are replaced, so any change shows."""


class Records:
    """`<home>/discovery/{apps,tokens}/<environment>/<name>.json`, with the last readable content of each remembered."""

    def __init__(self, home: Path) -> None:
        self._root = home / "discovery"
        self._apps: dict[str, AppRecord] = {}
        self._tokens: dict[str, Token] = {}
        self._complained: set[tuple[str, int]] = set()

    # --- reading ---------------------------------------------------------------------------------------------

    def fingerprint(self, *kinds: str) -> Fingerprint:
        """Equal fingerprints: nothing was written in between. Raises OSError."""
        return frozenset(
            (entry.path, status.st_ino, status.st_mtime_ns, status.st_size)
            for kind in kinds or ("apps", "tokens")
            for entry in self._entries(kind)
            if (status := _status(entry)) is not None
        )

    def all_apps(self) -> tuple[AppRecord, ...]:
        """Every App's record. One that cannot be read is logged and its last readable content stands in for it."""
        self._apps = self._read_all("apps", self._apps, self._load_app)
        return tuple(self._apps[path] for path in sorted(self._apps))

    def all_tokens(self, environment: str | None = None) -> tuple[Token, ...]:
        """Every token, or those of one environment; unreadable ones as in `all_apps`."""
        self._tokens = self._read_all("tokens", self._tokens, self._load_token)
        found = (self._tokens[path] for path in sorted(self._tokens))
        return tuple(token for token in found if environment in {None, token.environment})

    def app(self, name: str, environment: str) -> AppRecord | None:
        """One App's record as it is now. Raises BackendRefused when it cannot be read."""
        return self._load_app(self._app_path(name, environment))

    def _read_all(self, kind: str, last: dict[str, Any], load: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in self._entries(kind):
            try:
                record = load(Path(entry.path))
            except BackendError as error:
                self._complain(entry, error)
                record = last.get(entry.path)
            if record is not None:
                found[entry.path] = record
        return found

    def _complain(self, entry: os.DirEntry[str], error: BackendError) -> None:
        """Once for each content of a file, not at every look."""
        status = _status(entry)
        seen = (entry.path, status.st_mtime_ns if status else 0)
        if seen not in self._complained:
            self._complained.add(seen)
            logger.error("%s; its last readable content stays in force. %s", error.message, error.hint or "")

    def _entries(self, kind: str) -> Iterator[os.DirEntry[str]]:
        for folder in _scan(self._root / kind):
            if folder.is_dir():
                yield from (entry for entry in _scan(Path(folder.path)) if entry.name.endswith(".json"))

    def _load_app(self, path: Path) -> AppRecord | None:
        content = read_record(path, APP, FORMAT)
        if content is None:
            return None
        with _validated(path):
            return AppRecord.model_validate(content)

    def _load_token(self, path: Path) -> Token | None:
        content = read_record(path, TOKEN, FORMAT)
        if content is None:
            return None
        with _validated(path):
            return Token.model_validate(content)

    # --- writing ---------------------------------------------------------------------------------------------

    def publish(self, change: PublishApp) -> None:
        """Compare and set, across processes."""
        record = change.record
        path = self._app_path(record.app, record.environment)
        with self._locked():
            check_change(change, self._load_app(path), self.all_apps())
            write_record(path, APP, FORMAT, record.model_dump(mode="json"))

    def withdraw(self, change: WithdrawApp) -> None:
        """Raises NotFound."""
        path = self._app_path(change.app, change.environment)
        self._remove(path, f"there is no App {change.app} in environment {change.environment}")

    def put_token(self, token: Token) -> None:
        """Create or replace."""
        path = self._token_path(token.id, token.environment)
        with self._locked():
            write_record(path, TOKEN, FORMAT, token.model_dump(mode="json"))

    def delete_token(self, id: str, environment: str) -> None:
        """Raises NotFound."""
        path = self._token_path(id, environment)
        self._remove(path, f"there is no token {id} in environment {environment}")

    def _remove(self, path: Path, missing: str) -> None:
        with self._locked(), translated(f"remove {path}"):
            try:
                path.unlink()
            except FileNotFoundError:
                raise NotFound(missing) from None

    def _locked(self) -> FileLock:
        return FileLock(self._root / "lock")

    def _app_path(self, name: str, environment: str) -> Path:
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is not the name of an App", "a name is 1 to 64 of A-Z, a-z, 0-9, _, . and -")
        return self._root / "apps" / _environment(environment) / f"{name}.json"

    def _token_path(self, id: str, environment: str) -> Path:
        if not TOKEN_ID.fullmatch(id):
            raise NotFound(f"{id!r} is not the id of a token", "see what there is with: modalnomad token list")
        return self._root / "tokens" / _environment(environment) / f"{id}.json"


def check_change(change: PublishApp, present: AppRecord | None, others: Iterable[AppRecord]) -> None:
    """Raises BackendConflict unless the record's serial is the expected one, and no host it serves is served by
    another App."""
    record = change.record
    name = f"App {record.app} in environment {record.environment}"
    found = present.serial if present else 0
    if found != change.expected:
        raise BackendConflict(
            f"{name} was changed by somebody else meanwhile (found serial {found}, expected {change.expected})",
            "look at it with `modalnomad app history`, then try again",
        )
    if record.serial != change.expected + 1:
        raise ValueError(f"serial {record.serial} does not follow {change.expected}")
    wanted = {host: route for route in record.routes for host in route.hosts}
    for other in others:
        if (other.app, other.environment) == (record.app, record.environment):
            continue
        for route in other.routes:
            if taken := next((host for host in route.hosts if host in wanted), None):
                raise BackendConflict(
                    f"{wanted[taken].name} wants the host {taken}, which {route.name} in environment "
                    f"{other.environment} has",
                    f"give one of them another label=, or stop the other App: modalnomad app stop {other.app}",
                )


def _environment(name: str) -> str:
    if not ENVIRONMENT_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not the name of an environment",
            "a name is 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit",
        )
    return name


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


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
