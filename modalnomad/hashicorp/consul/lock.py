"""A named lock in Consul: one holder, named to whoever asks for it meanwhile."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from modalnomad.hashicorp.consul.api import ConsulApi, Op
from modalnomad.hashicorp.consul.sessions import LEAST_TTL, LOCK_DELAY, SessionLost, open_session
from modalnomad.model.errors import BackendConflict, BackendError

RETRY: Final = 0.1
"""Seconds between two tries while a lock that nobody holds cannot be had yet (its lock delay)."""


@asynccontextmanager
async def hold(
    api: ConsulApi, key: str, name: str, *, lifetime: float, least: float = LEAST_TTL
) -> AsyncIterator[None]:
    """Hold it. A holder that dies loses it within `lifetime` seconds, or within 20 where that is more: Consul ends a
    session one to two TTLs after the last renewal, and takes no TTL below 10 s (`least`).

    Raises BackendConflict when somebody else holds it. When it is lost meanwhile, the block is cancelled and
    BackendConflict raised in its place: what it would have written must not be written.
    """
    try:
        async with open_session(api, f"modalnomad lock {name}", ttl=max(lifetime / 2, least)) as session:
            await _acquire(api, key, name, session.id)
            try:
                yield
            finally:
                await release(api, key, session.id)
    except SessionLost as lost:
        raise BackendConflict(f"the lock {name!r} was lost: {lost}", "nothing more was done; try again") from None


async def _acquire(api: ConsulApi, key: str, name: str, session: str) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    deadline = time.monotonic() + 2 * LOCK_DELAY
    while not await api.put(key, holder.encode(), acquire=session):
        found = (await api.get(key)).items
        if found and found[0].session:
            other = found[0].value.decode("utf-8", "replace")[:200] or "another process"
            raise BackendConflict(f"the lock {name!r} is held by {other}", "wait until it is done, or stop it")
        if time.monotonic() >= deadline:
            raise BackendConflict(
                f"the lock {name!r} cannot be had: {api.where} refuses it though nobody holds it", "try again"
            )
        await asyncio.sleep(RETRY)


async def release(api: ConsulApi, key: str, session: str) -> None:
    """Only while it is still ours. The end of the session would do too, but then nobody gets it for the lock delay."""
    with suppress(BackendError, TimeoutError):
        async with asyncio.timeout(LOCK_DELAY):
            await api.txn([Op("check-session", key, session=session), Op("delete", key)])
