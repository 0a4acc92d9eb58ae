"""Discovery on this machine: records in files that any number of processes of one home read and write."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from modalnomad.embedded.records import Records, check_change
from modalnomad.embedded.store import named_lock
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import NotFound, UserError
from modalnomad.model.ids import NAME
from modalnomad.model.routes import RouteSnapshot, Token
from modalnomad.ports.discovery import AppRecord, Change, DeleteToken, Discovery, PublishApp, PutToken, WithdrawApp

logger = logging.getLogger("modalnomad.discovery")

LOOK_EVERY: Final = 0.25
"""Seconds between two looks at the files for what other processes wrote: a directory listing. The files are read
when it differs."""
RECONCILE_EVERY: Final = 15.0
"""Seconds after which the files are read whatever the listing says."""

Content = tuple[tuple[AppRecord, ...], tuple[Token, ...]]


class EmbeddedDiscovery(Discovery):
    """Port `Discovery` on `<home>/discovery`."""

    def __init__(self, home: Path, *, look_every: float = LOOK_EVERY) -> None:
        self._home = home
        self._records = Records(home)
        self._look_every = look_every
        self._written = Cell(0)
        """Rises with each write of this process, so that its own watchers need not wait for the next look."""

    async def watch(self) -> AsyncIterator[RouteSnapshot]:
        """The current snapshot at once, then one per change, those of other processes within half a second."""
        seen: Hashable = None
        last: Content | None = None
        index = 0
        read_at = 0.0
        while True:
            written = self._written.value
            try:
                state = (written, self._state())
                if state != seen or time.monotonic() >= read_at + RECONCILE_EVERY:
                    found = (self._apps(), self._records.all_tokens())
                    seen, read_at = state, time.monotonic()
                    if found != last:
                        last, index = found, index + 1
                        yield _snapshot(found, index)
            except OSError as error:
                # What was last seen stays in force: a look that fails must not empty anybody's table.
                logger.error("cannot look at the records of %s: %s", self._home, error)
            await _changed(self._written, written, self._look_every)

    def _state(self) -> Hashable:
        """Equal states: nothing changed in between."""
        return self._records.fingerprint()

    def _apps(self) -> tuple[AppRecord, ...]:
        return self._records.all_apps()

    async def app(self, name: str, environment: str) -> AppRecord | None:
        """The App's record as it is now."""
        return await asyncio.to_thread(self._records.app, name, environment)

    async def apps(self, environment: str | None = None) -> tuple[AppRecord, ...]:
        """Every App's record, stopped ones too. One that cannot be read is logged, and left out."""
        found = await asyncio.to_thread(self._apps)
        return tuple(
            sorted(
                (app for app in found if environment in {None, app.environment}),
                key=lambda app: (app.environment, app.app),
            )
        )

    async def tokens(self, environment: str) -> tuple[Token, ...]:
        """All tokens of an environment."""
        return self._records.all_tokens(environment)

    async def publish(self, change: Change) -> None:
        """One atomic write. Raises BackendConflict as the port says."""
        try:
            await asyncio.to_thread(self._write, change)
        finally:
            self._written.set(self._written.value + 1)

    def _write(self, change: Change) -> None:
        match change:
            case PublishApp():
                self._records.publish(change)
            case WithdrawApp():
                self._records.withdraw(change)
            case PutToken(token):
                self._records.put_token(token)
            case DeleteToken(id, environment):
                self._records.delete_token(id, environment)

    def lock(self, name: str, *, lifetime: float) -> AbstractAsyncContextManager[None]:
        """Hold the named lock. A holder that dies loses it at once, so `lifetime` is always kept."""
        return _lock(self._home, name)


class EphemeralDiscovery(EmbeddedDiscovery):
    """For `serve`: Apps live in this process and end with it; tokens are those of the home."""

    def __init__(self, home: Path, *, look_every: float = LOOK_EVERY) -> None:
        super().__init__(home, look_every=look_every)
        self._own: dict[tuple[str, str], AppRecord] = {}

    def _state(self) -> Hashable:
        return self._records.fingerprint("tokens")

    def _apps(self) -> tuple[AppRecord, ...]:
        return tuple(self._own[key] for key in sorted(self._own))

    async def app(self, name: str, environment: str) -> AppRecord | None:
        """The App's record as it is now."""
        return self._own.get((name, environment))

    def _write(self, change: Change) -> None:
        match change:
            case PublishApp(record):
                check_change(change, self._own.get((record.app, record.environment)), self._own.values())
                self._own[record.app, record.environment] = record
            case WithdrawApp(app, environment):
                if self._own.pop((app, environment), None) is None:
                    raise NotFound(f"there is no App {app} in environment {environment}")
            case _:
                super()._write(change)


def _snapshot(content: Content, index: int) -> RouteSnapshot:
    apps, tokens = content
    return RouteSnapshot(
        routes=tuple(route for app in apps for route in app.routes),
        revisions={revision.id: revision for app in apps for revision in app.revisions},
        tokens=tokens,
        overrides={id: override for app in apps for id, override in app.overridden.items()},
        deployed_at={
            revision.id: app.current.deployed_at for app in apps if app.current for revision in app.current.revisions
        },
        serials={(app.environment, app.app): app.serial for app in apps},
        index=index,
    )


async def _changed(written: Cell[int], seen: int, timeout: float) -> None:
    """Return at the next write of this process, or after `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            await written.until(lambda now: now != seen)
    except TimeoutError:
        return


@asynccontextmanager
async def _lock(home: Path, name: str) -> AsyncIterator[None]:
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not the name of a lock")
    holder = f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with named_lock(home / "locks" / f"{name}.lock", f"the lock {name!r}", holder):
        yield
