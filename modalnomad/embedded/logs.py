"""What replicas write: bytes → lines with their request, the newest kept, followers told.

Nothing here grows with the output: lines are cut, rings are bounded in lines and in bytes, and a follower that cannot
keep up is told that it missed some.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal

from modalnomad.embedded.pacing import Pace, Paces
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import NotFound
from modalnomad.model.replica import LogLine, ReplicaKey

RING_BYTES: Final = 4 * 1024 * 1024
"""Characters of text kept of each replica, however many lines."""
ALL_RINGS_BYTES: Final = 64 * 1024 * 1024
"""Of all replicas together: where they are many, each keeps less."""
LINES_IN_A_ROW: Final = 100
"""A follower that is given many lines lets others have the event loop after so many."""
LEAST_LINES: Final = 200
"""Kept whatever the settings say: the end of the output is the reason of a failed start."""

Stream = Literal["stdout", "stderr", "system"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose lines they are."""

    key: ReplicaKey
    app: str
    function: str
    environment: str = ""


class ReplicaLog:
    """The newest lines of one replica."""

    def __init__(self, origin: Origin, journal: Journal, lines: int) -> None:
        self.origin = origin
        self._replica = str(origin.key)
        self._journal = journal
        self.pace = Pace(journal.paces)
        self._limit = max(lines, LEAST_LINES)
        self._kept: deque[tuple[int, LogLine]] = deque()
        self._bytes = 0
        self.last = 0
        """Sequence number of the newest line."""
        self._dropped = 0
        """Sequence number of the newest line no longer kept."""
        self.ended = False

    def write(self, stream: Stream, lines: list[tuple[str | None, str]]) -> None:
        """Add lines, drop the oldest beyond the limits, tell the followers."""
        now = time.time()
        origin, replica = self.origin, self._replica
        for request_id, text in lines:
            self.last = self._journal.next_number()
            line = LogLine(now, origin.app, origin.function, replica, stream, text, request_id, origin.environment)
            self._kept.append((self.last, line))
            self._bytes += len(text)
        room = self._journal.room()
        while len(self._kept) > self._limit or self._bytes > room:
            number, line = self._kept.popleft()
            self._bytes -= len(line.text)
            self._dropped = number
        self._journal.tell()

    def end(self) -> None:
        """No more lines will come."""
        self.ended = True
        self.pace.end()
        self._journal.tell()

    def after(self, number: int) -> list[tuple[int, LogLine]]:
        """Lines newer than `number`, oldest first; a line of the platform's own says when some are no longer there."""
        found: list[tuple[int, LogLine]] = []
        for entry in reversed(self._kept):
            if entry[0] <= number:
                break
            found.append(entry)
        if 0 < number < self._dropped:
            origin, text = self.origin, "some lines are left out here: they came faster than they were read"
            missing = LogLine(
                time.time(), origin.app, origin.function, self._replica, "system", text, None, origin.environment
            )
            found.append((self._dropped, missing))
        found.reverse()
        return found

    def tail(self, lines: int) -> str:
        """The last lines of the replica's own output, for a failure's detail."""
        own = [line.text for _, line in self._kept if line.stream != "system"]
        return "\n".join(own[-lines:])


class Journal:
    """The logs of all replicas of an engine."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._logs: dict[ReplicaKey, ReplicaLog] = {}
        self._number = 0
        self.paces = Paces()
        self._told = Cell(0)

    def open(self, origin: Origin) -> ReplicaLog:
        """The log of a new replica."""
        log = self._logs[origin.key] = ReplicaLog(origin, self, self._lines)
        return log

    def forget(self, key: ReplicaKey) -> None:
        """Free the lines of a replica that ended."""
        self._logs.pop(key, None)

    def room(self) -> int:
        """Characters one replica may keep now."""
        return min(RING_BYTES, ALL_RINGS_BYTES // max(1, len(self._logs)))

    def next_number(self) -> int:
        """Numbers order the lines of all replicas."""
        self._number += 1
        return self._number

    def tell(self) -> None:
        """Wake the followers."""
        self._told.set(self._told.value + 1)

    async def read(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        """As the engine port's `logs`. Raises NotFound for a replica that is not known."""
        if key is not None and key not in self._logs:
            raise NotFound(f"there is no replica {key}")
        only = self._logs[key] if key is not None else None
        seen = 0
        while True:
            told = self._told.value
            logs = [only] if only is not None else list(self._logs.values())
            ended = only is not None and only.ended
            batches = [log.after(seen) for log in logs if log.last > seen]
            for count, (number, line) in enumerate(heapq.merge(*batches, key=lambda entry: entry[0]), 1):
                seen = max(seen, number)
                yield line
                if not count % LINES_IN_A_ROW:
                    await asyncio.sleep(0)
            if not follow or ended:
                return
            await self._told.until(lambda now, told=told: now != told)  # type: ignore[misc]
