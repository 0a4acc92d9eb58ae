"""Consul sessions: what somebody holds who is alive. https://developer.hashicorp.com/consul/docs/dynamic-app-config/sessions"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.following import pause_after
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError

logger = logging.getLogger("modalnomad.consul")

LEAST_TTL: Final = 10.0
"""Seconds; Consul takes no less (`session_ttl_min`)."""
LOCK_DELAY: Final = 1.0
"""Seconds nobody gets the lock of a holder whose session ended without a release."""
FAREWELL_LIMIT: Final = 3.0
"""Seconds the end of a session may take; then it is left to its TTL."""


class SessionLost(Exception):
    """The session ended though its holder lives: what it held may be somebody else's. The message says why."""


@dataclass(slots=True)
class Session:
    """Alive as far as this process knows."""

    id: str
    ttl: float
    """Seconds."""
    good_until: float
    """Monotonic time before which it has certainly not ended by its TTL."""

    @property
    def alive(self) -> bool:
        """Certainly."""
        return time.monotonic() < self.good_until


@asynccontextmanager
async def open_session(
    api: ConsulApi, name: str, *, ttl: float, lock_delay: float = LOCK_DELAY
) -> AsyncIterator[Session]:
    """Hold a session, renewed in the background, ended at once with the block.

    When it is lost within the block, the block is cancelled and SessionLost raised in its place: at the latest `ttl`
    seconds after Consul last confirmed it. Raises BackendError when it cannot be made.
    """
    asked = time.monotonic()
    session = Session(await api.create_session(name, ttl=ttl, lock_delay=lock_delay), ttl, asked + ttl)
    try:
        async with asyncio.timeout(None) as limit, Tasks(f"session {name}") as tasks:
            lost: list[str] = []
            tasks.spawn(_renew(api, session, limit, lost), "renew")
            yield session
    except TimeoutError:
        if not limit.expired():
            raise
        raise SessionLost(lost[0]) from None
    finally:
        session.good_until = 0.0
        await _end(api, session.id)


async def _renew(api: ConsulApi, session: Session, limit: asyncio.Timeout, lost: list[str]) -> None:
    failures = 0
    while True:
        await asyncio.sleep(min(pause_after(failures), session.ttl / 10) if failures else session.ttl / 3)
        asked = time.monotonic()
        try:
            # Never past the moment from which somebody else may hold what it holds.
            left = max(min(session.ttl / 3, session.good_until - asked), 0.05)
            alive = await api.renew_session(session.id, limit=left)
        except BackendError as error:
            failures += 1
            if session.alive:
                continue
            lost.append(f"Consul did not confirm it for {session.ttl:g} s: {error.message}")
        else:
            if alive:
                failures, session.good_until = 0, asked + session.ttl
                continue
            lost.append("Consul ended its session")
        session.good_until = 0.0
        limit.reschedule(asyncio.get_running_loop().time())
        return


async def _end(api: ConsulApi, id: str) -> None:
    """At once, also when the block was cancelled."""
    with suppress(BackendError, TimeoutError):
        async with asyncio.timeout(FAREWELL_LIMIT):
            await api.end_session(id)
