"""What the router asks of a replica itself: are you ready, will you drain, here is a greeting.

The engine says when a process ended; that always wins over what is heard here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from modalnomad_sdk import contract

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Address, ReplicaKey

logger = logging.getLogger("modalnomad.router.probe")

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.25
PATIENCE = 40
"""Between two tries to connect to a starting replica passes a 40th of the time it has taken so far, within these bounds
(seconds): what trying adds to a start is 1 % of it on average."""
MOST_TRIES = 2000
"""Connections tried per second, of all starting replicas together, so that a hundred of them leave time for requests
(one costs about 0.1 ms). Only while nobody listens: one that does, holds the request."""
STRANGER_PAUSE = 0.25
"""Seconds after an answer that was not the replica's own `ready`."""
FORBIDDEN = 403
"""How a replica answers a ticket that is not its own."""
DRAIN_LIMIT = 10.0
"""Seconds a replica may take to answer a drain or a greeting."""


class Asker(Protocol):
    """One small private request to a replica (`Upstream.ask`). Returns status, headers, body."""

    async def __call__(
        self,
        address: Address,
        method: bytes,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        timeout: float | None,
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Raises ConnectionError when nobody answers, TimeoutError after `timeout` seconds (None: no limit)."""


class DrainRefused(Exception):
    """Something runs on the replica, or ran `idle_for` seconds ago."""

    def __init__(self, idle_for: float) -> None:
        super().__init__(f"idle for {idle_for:.1f} s")
        self.idle_for = idle_for


class Prober:
    """Asks replicas, with the ticket of their revision. A replica takes the one ticket whose hash it was started with:
    of several platform keys, the first that it does not refuse is its own."""

    def __init__(self, ask: Asker, platform_key: bytes, clock: Clock = monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._pausing = 0
        self._keys: tuple[bytes, ...] = (platform_key,)
        self._tickets: dict[RevisionId, tuple[bytes, ...]] = {}
        self.on_unknown: Callable[[], None] = lambda: None
        """Called when whoever answers in a replica's place takes no ticket: it may be of a key that is not known."""

    def know(self, keys: Sequence[bytes]) -> None:
        """From now on these platform keys, the newest first. What replicas were found to take stays."""
        self._keys = tuple(keys)
        self._tickets.clear()

    def tickets(self, revision: RevisionId) -> tuple[bytes, ...]:
        """Hex HMAC-SHA256 of the revision's id under each platform key (contract.HEADER_TICKET)."""
        tickets = self._tickets.get(revision)
        if tickets is None:
            if len(self._tickets) >= 1000:
                self._tickets.clear()
            made = (hmac.new(key, revision.encode(), hashlib.sha256) for key in self._keys)
            tickets = self._tickets[revision] = tuple(each.hexdigest().encode() for each in made)
        return tickets

    async def ready(self, key: ReplicaKey, address: Address, ticket: bytes = b"") -> bytes:
        """Return when the replica itself has said that it is ready: one held request, repeated while nobody listens.
        Whoever else answers on that address (a stranger on the port) is asked again. The pool keeps the time.
        `ticket`, here and below: what it was found to take; empty: not known yet. Returns what it takes."""
        expected = f"{key.pool} {key.name}".encode()
        began = self._clock()
        while True:
            try:
                status, headers, _, taken = await self._send(
                    key, address, b"GET", contract.READY_PATH.encode(), None, ticket
                )
            except (OSError, TimeoutError):
                await self._pause(self._clock() - began)
                continue
            names = [value for name, value in headers if name.lower() == contract.HEADER_REPLICA.encode()]
            if status == 200 and names == [expected]:
                return taken
            if status == FORBIDDEN:
                self.on_unknown()
            logger.warning("%s: %s answered %d as %s", key, address, status, names)
            await asyncio.sleep(STRANGER_PAUSE)

    async def _pause(self, taken: float) -> None:
        self._pausing += 1
        try:
            pause = min(max(FIRST_PAUSE, taken / PATIENCE), LONGEST_PAUSE)
            await asyncio.sleep(max(pause, self._pausing / MOST_TRIES))
        finally:
            self._pausing -= 1

    async def drain(
        self, key: ReplicaKey, address: Address, idle_for: float, *, ticket: bytes = b"", force: bool = False
    ) -> None:
        """Return when it agreed. `force`: whatever runs on it, it lets nothing more in and ends after that. Raises
        DrainRefused; ConnectionError or TimeoutError: nobody knows."""
        path = f"{contract.DRAIN_PATH}?{'force=1' if force else f'idle_for={idle_for:g}'}".encode()
        status, _, body, _ = await self._send(key, address, b"POST", path, DRAIN_LIMIT, ticket)
        if status == 202:
            return
        if status == 409:
            raise DrainRefused(_idle_for(body))
        raise ConnectionAbortedError(f"{key}: a drain was answered {status}")

    async def greet(self, key: ReplicaKey, address: Address, ticket: bytes = b"") -> None:
        """Tell it that somebody still cares, so that it does not drain itself. Raises ConnectionError, TimeoutError."""
        await self._send(key, address, b"GET", contract.READY_PATH.encode(), DRAIN_LIMIT, ticket)

    async def _send(
        self, key: ReplicaKey, address: Address, method: bytes, path: bytes, limit: float | None, known: bytes
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes, bytes]:
        """With one ticket after the other while it is refused. Returns the one it ended with, last."""
        tickets = self.tickets(key.pool.revision)
        for ticket in dict.fromkeys((known, *tickets) if known else tickets):
            headers = [(contract.HEADER_TICKET.encode(), ticket)]
            status, answered, body = await self._ask(address, method, path, headers, limit)
            if status != FORBIDDEN:
                break
        return status, answered, body, ticket


def _idle_for(body: bytes) -> float:
    """Of {"running": n, "idle_for": s}: 0 while something runs, and when the body is anything else."""
    try:
        found: Any = json.loads(body)
        return 0.0 if found["running"] else max(0.0, float(found["idle_for"]))
    except (ValueError, TypeError, KeyError):
        return 0.0
