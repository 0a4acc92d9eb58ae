"""One of several: who does what only one may do, by a lock in Consul."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.following import PACE, pause_after
from modalnomad.hashicorp.consul.lock import RETRY, release
from modalnomad.hashicorp.consul.sessions import LEAST_TTL, Session, SessionLost, open_session
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError

logger = logging.getLogger("modalnomad.consul")


class Leader:
    """Wants the lock `key` for as long as it runs. Another one gets it within 11 to 21 s after a crash, at once after
    an orderly end."""

    def __init__(self, api: ConsulApi, key: str, *, ttl: float = LEAST_TTL) -> None:
        self._api = api
        self._key = key
        self._ttl = ttl
        self._session: Cell[Session | None] = Cell(None)
        """The one that holds the lock."""

    @property
    def held(self) -> bool:
        """Certainly by this one: Consul confirmed it less than the session's TTL ago, before which it gives it to
        nobody else."""
        session = self._session.value
        return session is not None and session.alive

    async def run(self) -> None:
        """Hold it, or wait for it. Until cancelled, which releases it."""
        failures = 0
        while True:
            try:
                async with open_session(self._api, f"modalnomad {self._key}", ttl=self._ttl) as session:
                    failures = 0
                    try:
                        await self._hold(session)
                    finally:
                        self._session.set(None)
                        await release(self._api, self._key, session.id)
            except (BackendError, SessionLost) as error:
                failures += 1
                if failures == 1:
                    logger.warning("%s cannot be held now: %s", self._key, error)
            await asyncio.sleep(pause_after(max(failures, 1)))

    async def _hold(self, session: Session) -> None:
        """Until the session is lost."""
        holder = f"process {os.getpid()} on {socket.gethostname()}".encode()
        index = 0
        while True:
            found = await self._api.get(self._key, index=index)
            index = found.index if found.index >= index else 0
            owner = found.items[0].session if found.items else ""
            if owner != session.id:
                self._session.set(None)
            if not owner:
                # False: the lock delay of the one before is not over.
                if not await self._api.put(self._key, holder, acquire=session.id):
                    await asyncio.sleep(RETRY)
                index = 0
                continue
            if owner == session.id and self._session.value is None:
                self._session.set(session)
                logger.info("%s is held by this process", self._key)
            await asyncio.sleep(PACE)

    async def while_held(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run it whenever the lock is held, cancel it when it is lost. Until cancelled, or until it ends by itself."""
        while True:
            await self._session.until(lambda session: session is not None)
            async with Tasks(f"holding {self._key}") as tasks:
                work = tasks.spawn(run(), "work")
                over = tasks.spawn(self._session.until(lambda session: session is None), "loss")
                await asyncio.wait([work, over], return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return await work
