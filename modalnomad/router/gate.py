"""Every client connection of a router: who is inside, what has waited too long, and how all of it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.kit.tasks import Tasks
from modalnomad.router.access_log import AccessLog
from modalnomad.router.crowd import Crowd
from modalnomad.router.headers import Peer, Trusted
from modalnomad.router.measure import count, count_refusal
from modalnomad.router.replies import Answer
from modalnomad.router.request import Exchange
from modalnomad.router.telemetry import Counters
from modalnomad.settings import RouterSettings

FAREWELL = 0.25
"""Seconds in which clients that ask all the time are told that there is nobody any more, instead of finding out."""


class Guest(Protocol):
    """A client connection, or what became of it."""

    @property
    def busy(self) -> bool:
        """A request is being answered."""

    def tick(self, now: float) -> None:
        """Look at the clock."""

    def drain(self) -> None:
        """End as soon as what runs is answered."""

    def abort(self) -> None:
        """End now."""


class Gate:
    """`handle` answers one request; it never raises but CancelledError."""

    def __init__(
        self,
        handle: Callable[[Exchange], Coroutine[Any, Any, None]],
        settings: RouterSettings,
        *,
        counters: Counters | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.handle = handle
        self.settings = settings
        self.trusted = Trusted(settings.trusted_proxies)
        self.counters = counters or Counters()
        self.clock = clock
        self.crowd = Crowd(clock)
        self.tasks = Tasks("requests")
        self.access_log: AccessLog | None = None
        self.draining = False
        """Every answer ends its connection; new requests are refused."""
        self.closing = False
        """Idle connections are closed, new ones too."""
        self._guests: set[Guest] = set()
        self._left = asyncio.Event()
        self._interval = min(1.0, settings.head_timeout / 4, settings.idle_timeout / 4)

    @property
    def guests(self) -> int:
        """Connections that are open."""
        return len(self._guests)

    def enter(self, guest: Guest) -> None:
        """A connection was accepted, or turned into something else."""
        self._guests.add(guest)
        self.counters.connections = len(self._guests)

    def leave(self, guest: Guest) -> None:
        """It ended."""
        self._guests.discard(guest)
        self.counters.connections = len(self._guests)
        self._left.set()

    def finished(self, exchange: Exchange) -> None:
        """One request ended."""
        now = self.clock()
        count(exchange, now, self.counters)
        if self.access_log is not None:
            self.access_log.add(exchange, now)

    def refused(self, peer: Peer, request_id: bytes, answer: Answer) -> None:
        """What came never became a request."""
        count_refusal(answer, self.counters)
        if self.access_log is not None:
            self.access_log.add_refusal(peer, request_id, answer)

    async def sweep(self) -> None:
        """Runs as long as the router does: one clock for all connections costs each request nothing."""
        while True:
            due = self.clock() + self._interval
            await asyncio.sleep(self._interval)
            now = self.clock()
            self.counters.lag = max(0.0, now - due)
            for guest in tuple(self._guests):
                guest.tick(now)

    async def farewell(self) -> None:
        """New requests are answered 503 `draining` from now on, and each answer ends its connection. Who is idle may
        just have sent one, and has a moment for it."""
        self.draining = True
        if self._guests or self.tasks.running:  # a client that is taken in late is a task first
            await asyncio.sleep(FAREWELL)

    def drain(self) -> None:
        """The same without that moment: no connection outlives the request it is busy with."""
        self.draining = self.closing = True
        for guest in tuple(self._guests):
            guest.drain()

    async def empty(self, timeout: float) -> bool:
        """Wait until nothing is busy; False: `timeout` seconds were not enough."""
        deadline = self.clock() + timeout
        while any(guest.busy for guest in self._guests):
            self._left.clear()
            # A connection that stops being busy without leaving is seen at the next look.
            wait = min(deadline - self.clock(), 0.05)
            if wait <= 0:
                return False
            try:
                async with asyncio.timeout(wait):
                    await self._left.wait()
            except TimeoutError:
                continue
        return True

    async def close(self) -> None:
        """Abort whatever is left and wait until no task and no connection is."""
        for guest in tuple(self._guests):
            guest.abort()
        await self.tasks.close()
        while self._guests:
            self._left.clear()
            await self._left.wait()
