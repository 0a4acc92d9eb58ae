"""Discovery on this machine: records in files that any number of processes of one home read and write."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from modalnomad.embedded.records import TOKENS, Records
from modalnomad.embedded.store import named_lock
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError, Problem, UserError
from modalnomad.model.ids import NAME
from modalnomad.model.routes import RouteSnapshot, Token
from modalnomad.ports.discovery import AppRecord, Change, DeleteToken, Discovery, PublishApp, PutToken, WithdrawApp
from modalnomad.ports.publishing import check_change, check_serial, no_app, snapshot_of

logger = logging.getLogger("modalnomad.discovery")

LOOK_EVERY: Final = 0.25
"""Seconds between two looks for what other processes wrote: at the times of a few folders, not at their files."""
SETTLED_AFTER: Final = 1.0
"""Seconds after a change in which the files are looked at too, and once more after them: writes that follow each other
within one tick of the file system's clock (10 ms) leave the same time on the folder."""
RECONCILE_EVERY: Final = 15.0
"""Seconds after which the files are looked at whatever their folders say."""

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
        look_closely_until = time.monotonic() + SETTLED_AFTER
        looked_at = 0.0
        failed = ""
        while True:
            written = self._written.value
            try:
                state, now = (written, self._state()), time.monotonic()
                if state != seen:
                    look_closely_until = now + SETTLED_AFTER
                if state != seen or looked_at <= look_closely_until or now >= looked_at + RECONCILE_EVERY:
                    found = await asyncio.to_thread(self._content)
                    seen, looked_at, failed = state, now, ""
                    if found != last:
                        last, index = found, index + 1
                        yield snapshot_of(*found, index)
            except (OSError, BackendError) as error:
                # What was last seen stays in force: a look that fails must not empty anybody's table.
                if failed != (failed := str(error)):
                    logger.error("cannot look at the records of %s: %s; what was last read stays", self._home, error)
            await _changed(self._written, written, self._look_every)

    def _state(self) -> Hashable:
        """Equal states: most probably nothing changed in between. Cheap."""
        return self._records.folders()

    def _content(self) -> Content:
        """Everything as it is now. Reads only what changed."""
        return self._apps(), self._records.all_tokens()

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

    async def problems(self) -> tuple[Problem, ...]:
        """The records that cannot be read now."""
        return await asyncio.to_thread(self._records.problems)

    async def tokens(self, environment: str) -> tuple[Token, ...]:
        """All tokens of an environment."""
        return await asyncio.to_thread(self._records.all_tokens, environment)

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
        self._guard = threading.Lock()

    def _state(self) -> Hashable:
        return self._records.folders(TOKENS)

    def _apps(self) -> tuple[AppRecord, ...]:
        with self._guard:
            return tuple(self._own[key] for key in sorted(self._own))

    async def app(self, name: str, environment: str) -> AppRecord | None:
        """The App's record as it is now."""
        return self._own.get((name, environment))

    def _write(self, change: Change) -> None:
        if isinstance(change, PublishApp | WithdrawApp):
            with self._guard:
                self._write_own(change)
        else:
            super()._write(change)

    def _write_own(self, change: PublishApp | WithdrawApp) -> None:
        if isinstance(change, PublishApp):
            record = change.record
            check_change(change, self._own.get((record.app, record.environment)), self._own.values())
            self._own[record.app, record.environment] = record
            return
        key = change.app, change.environment
        if (present := self._own.get(key)) is None:
            raise no_app(change.app, change.environment)
        if change.expected is not None:
            check_serial(*key, present.serial, change.expected)
        del self._own[key]


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
    with named_lock(home / "locks" / f"{name}.lock", f"the lock {name!r}"):
        yield
