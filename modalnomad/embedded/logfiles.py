"""What replicas write, kept on disk as long as the limits allow, whatever the disk and the replicas do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final, Protocol

from modalnomad.embedded.log_segments import LogWriter, app_folder, encoded, remove_older
from modalnomad.embedded.store import refused
from modalnomad.kit.tasks import Tasks
from modalnomad.model.replica import LogLine, ReplicaKey
from modalnomad.settings import EmbeddedSettings

logger = logging.getLogger("modalnomad.logs")

WRITE_EVERY: Final = 0.5
"""Seconds a line waits at most before it is written: what `kill -9` loses."""
WRITE_FROM: Final = 256 * 1024
"""Bytes that are written without waiting."""
HELD_BYTES: Final = 2 * 1024 * 1024
"""Bytes that may wait while the disk does not take them; then reading pauses, and the rings of the replicas are what
bounds the rest."""
TIDY_EVERY: Final = 3600.0
"""Seconds between two looks for what is too old."""
LAST_WRITE: Final = 5.0
"""Seconds the disk gets at the end: to have room for the last words, and again to take them."""
DAY: Final = 86400.0

AppKey = tuple[str, str]
"""Environment and App."""


class LogSource(Protocol):
    """What the keeper follows: `logs` of the engine port."""

    def logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]: ...


class LogKeeper:
    """Follows the engine's log and writes it to files. `run` until cancelled; nothing that the disk does ends it.

    Cancel it after the engine has closed: the last words of the replicas are then in the files.
    """

    def __init__(self, engine: LogSource, home: Path, settings: EmbeddedSettings) -> None:
        self._engine = engine
        self._files = LogFiles(home, settings)
        self._off = not settings.log_bytes
        self._pending: dict[AppKey, list[bytes]] = {}
        self._held = 0
        self._taken = 0
        self._some = asyncio.Event()
        """There is something to write."""
        self._much = asyncio.Event()
        """It should be written now."""
        self._room = asyncio.Event()
        self._room.set()
        self._ending = False

    @property
    def lost(self) -> int:
        """Lines that could not be written, since it began."""
        return self._files.lost

    async def run(self) -> None:
        """Until cancelled."""
        if self._off:
            await asyncio.get_running_loop().create_future()
        async with Tasks("logs") as tasks:
            reading = tasks.spawn(self._read(), "read")
            writing = tasks.spawn(self._write(), "write")
            try:
                await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await self._caught_up()
                self._ending = True
                self._some.set()
                self._much.set()
                await asyncio.wait({writing}, timeout=LAST_WRITE)
            for task in (reading, writing):
                if task.done():
                    task.result()

    async def _read(self) -> None:
        async with aclosing(self._engine.logs(None, follow=True)) as lines:  # type: ignore[type-var]
            async for line in lines:
                raw = encoded(line)
                self._pending.setdefault((line.environment, line.app), []).append(raw)
                self._taken += 1
                self._held += len(raw)
                self._some.set()
                if self._held >= WRITE_FROM:
                    self._much.set()
                if self._held >= HELD_BYTES:
                    self._room.clear()
                    await self._room.wait()

    async def _write(self) -> None:
        tidied = 0.0
        while True:
            if time.monotonic() >= tidied + TIDY_EVERY or not tidied:
                tidied = time.monotonic()
                await asyncio.to_thread(self._files.tidy)
            await _set_within(self._some, TIDY_EVERY)
            await _set_within(self._much, WRITE_EVERY)
            last = self._ending
            batch, self._pending, self._held = self._pending, {}, 0
            self._some.clear()
            self._much.clear()
            self._room.set()
            if batch:
                await asyncio.to_thread(self._files.write, batch)
            if last:
                return

    async def _caught_up(self) -> None:
        """What was written before the end has been taken by `_read`, which runs before the next line of ours does
        unless it waits for the disk."""
        deadline = time.monotonic() + LAST_WRITE
        seen = -1
        while seen != self._taken and (left := deadline - time.monotonic()) > 0:
            await _set_within(self._room, left)
            seen = self._taken
            for _ in range(10):
                await asyncio.sleep(0)


async def _set_within(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return


class LogFiles:
    """All Apps' logs. A disk that takes nothing is told once for each App, and what was lost meanwhile stands where it
    is missing.

    Blocking: for one thread at a time.
    """

    def __init__(self, home: Path, settings: EmbeddedSettings, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._limit = settings.log_bytes
        self._days = settings.log_days
        self._clock = clock
        self._writers: dict[AppKey, LogWriter] = {}
        self._missing: dict[AppKey, int] = {}
        """Lines lost since the last one that was written."""
        self.lost = 0
        self._failing: set[AppKey] = set()

    def write(self, batch: Mapping[AppKey, Sequence[bytes]]) -> None:
        """Whole lines of each App."""
        for key, lines in batch.items():
            self._tell(key, self._write(key, lines))

    def _tell(self, key: AppKey, error: OSError | None) -> None:
        """By App: the disk may take one's and not another's, and both may write all the time."""
        name = "/".join(key)
        if error is not None and key not in self._failing:
            self._failing.add(key)
            reason = refused(f"write the logs of {name}", error)
            where = app_folder(self._home, *key)
            logger.error("%s; what its replicas write is lost until it works again (%s)", reason.message, where)
        elif error is None and key in self._failing:
            self._failing.discard(key)
            logger.warning("the logs of %s are written again; how much was lost stands in them", name)

    def _write(self, key: AppKey, lines: Sequence[bytes]) -> OSError | None:
        missing = self._missing.get(key, 0)
        told = [self._notice(missing)] if missing else []
        writer = self._writers.get(key)
        if writer is None:
            writer = self._writers[key] = LogWriter(app_folder(self._home, *key), self._limit)
        written, error = writer.append([*told, *lines])
        if told and written:
            del self._missing[key]
        lost = len(lines) - max(0, written - len(told))
        if lost:
            self._missing[key] = self._missing.get(key, 0) + lost
            self.lost += lost
        return error

    def _notice(self, missing: int) -> bytes:
        text = f"{missing} lines are left out here: they could not be written to disk"
        return encoded(LogLine(self._clock(), "", "", "", "system", text))

    def tidy(self) -> None:
        """Remove what is too old."""
        self._writers.clear()  # of Apps that may be long gone; the others get new ones
        if not self._days:
            return
        try:
            remove_older(self._home, self._clock() - self._days * DAY)
        except OSError as error:
            logger.warning("%s", refused("remove old logs", error).message)
