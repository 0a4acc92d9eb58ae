"""When Functions with a schedule last ran, kept where every router of a cluster finds it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.leader import Leader
from modalnomad.model.errors import BackendError
from modalnomad.ports.discovery import Discovery
from modalnomad.scaling.schedule import JobKey, Memory, memories_from_json, memories_to_json
from modalnomad.wiring.scheduler import Calls, Scheduler

logger = logging.getLogger("modalnomad.schedules")

FORMAT: Final = 1


class ClusterSchedules:
    """`<prefix>/schedules` in Consul's store, written only by the router that holds the lock."""

    def __init__(self, consul: ConsulApi, prefix: str) -> None:
        self._consul = consul
        self._key = f"{prefix}/schedules"

    async def load(self) -> dict[JobKey, Memory]:
        """What was remembered. What cannot be read counts as nothing, which is logged: schedules go on."""
        try:
            found = await self._consul.get(self._key)
            content = json.loads(found.items[0].value) if found.items else {"jobs": []}
            return memories_from_json(content["jobs"])
        except (BackendError, KeyError, TypeError, ValueError) as error:
            logger.error("%s in Consul cannot be used: schedules are counted from now. %s", self._key, error)
            return {}

    async def save(self, memory: Mapping[JobKey, Memory]) -> None:
        """Raises BackendError."""
        jobs = memories_to_json(memory)
        await self._consul.put(self._key, json.dumps({"format": FORMAT, "jobs": jobs}).encode())


def led_scheduler(leader: Leader, discovery: Discovery, caller: Calls, records: ClusterSchedules) -> Scheduler:
    """One that starts nothing while another router may lead. It runs within `leader.while_held`."""
    return Scheduler(discovery, caller, records, may_run=lambda: leader.held)
