"""When Functions with a schedule last ran: one file in the home, written by `up` only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modalnomad.embedded.store import read_record, write_record
from modalnomad.model.errors import BackendError
from modalnomad.scaling.schedule import JobKey, Memory, memories_from_json, memories_to_json

logger = logging.getLogger("modalnomad.schedules")

KIND: Final = "schedules"
FORMAT: Final = 1


class ScheduleRecords:
    """`<home>/schedules.json`."""

    def __init__(self, home: Path) -> None:
        self._path = home / "schedules.json"

    async def load(self) -> dict[JobKey, Memory]:
        """What was remembered. A file that cannot be read counts as none, which is logged: schedules go on."""
        return await asyncio.to_thread(self._load)

    async def save(self, memory: Mapping[JobKey, Memory]) -> None:
        """Raises BackendRefused."""
        await asyncio.to_thread(self._save, memory)

    def _load(self) -> dict[JobKey, Memory]:
        try:
            content = read_record(self._path, KIND, FORMAT) or {"jobs": []}
            return memories_from_json(content["jobs"])
        except (BackendError, KeyError, TypeError, ValueError) as error:
            logger.error("%s cannot be used: schedules are counted from now. %s", self._path, error)
            return {}

    def _save(self, memory: Mapping[JobKey, Memory]) -> None:
        jobs = memories_to_json(memory)
        write_record(self._path, KIND, FORMAT, {"jobs": jobs})
