"""Connections to replicas: opened, kept a moment for the next request, closed. Owns every one of them."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Final

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.replica import Address, UnixAddress
from modalnomad.router.channel import Channel
from modalnomad.router.telemetry import Counters

IDLE_TIME: Final = 4.0
"""Seconds an unused connection is kept: less than servers do (5 s is common), so that it is us who closes first."""
IDLE_LIMIT: Final = 64
"""Unused connections kept per replica."""
_OWN_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""What connect(2) fails with for reasons on this side: files, memory, local ports."""
_KEEP_ALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""A replica's machine may vanish without a word: then a request that waits for its answer hears of it in half a minute.
(No TCP_USER_TIMEOUT: it would cut off a replica that just does not read, see tcp(7).)"""


class NoSocket(OSError):
    """No connection can be opened, whoever listens: this process or machine is at a limit of its own."""


class Channels:
    """`connect_timeout` in seconds."""

    def __init__(self, connect_timeout: float, *, counters: Counters, clock: Clock = monotonic) -> None:
        self._connect_timeout = connect_timeout
        self._counters = counters
        self._clock = clock
        self._idle: dict[Address, list[Channel]] = {}
        self._open: set[Channel] = set()
        self._closed_one = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self, address: Address) -> Channel | None:
        """A kept connection to this address, if there is one."""
        kept = self._idle.get(address)
        oldest = self._clock() - IDLE_TIME
        while kept:
            channel = kept.pop()
            if channel.reusable and channel.idle_since > oldest:
                return channel
            channel.close()
        return None

    async def connect(self, address: Address) -> Channel:
        """Raises ConnectionError or TimeoutError: it is not there; NoSocket: nobody knows."""
        self._counters.connects += 1
        channel = Channel(address, self._open.add, self._lost)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._connect(channel)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            if error.errno in _OWN_LIMITS:
                raise NoSocket(error.errno, f"no connection to {address} can be opened: {error.strerror}") from error
            raise ConnectionRefusedError(f"nobody listens at {address}: {error}") from error
        if channel.lost:
            raise ConnectionResetError(f"{address} closed the connection as it was made")
        return channel

    async def _connect(self, channel: Channel) -> None:
        loop, address = asyncio.get_running_loop(), channel.address
        try:
            if isinstance(address, UnixAddress):
                await loop.create_unix_connection(lambda: channel, address.path)
            else:
                transport, _ = await loop.create_connection(lambda: channel, address.host, address.port)
                _watch(transport.get_extra_info("socket"))
        except BaseException:
            # One that is made just as nobody waits for it any more is closed by uvloop without a word to its protocol.
            if channel in self._open:
                channel.close()
                self._lost(channel)
            raise

    def release(self, channel: Channel, *, keep: bool) -> None:
        """Close the connection; with `keep` only if no other request can follow on it."""
        if not keep or not channel.reusable:
            if channel in self._open:
                channel.close()
            return
        kept = self._idle.setdefault(channel.address, [])
        if len(kept) >= IDLE_LIMIT:
            channel.close()
            return
        channel.idle_since = self._clock()
        channel.resume_reading()
        kept.append(channel)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_TIME / 2, self._sweep)

    def _sweep(self) -> None:
        """Close what was not used for a while; runs only as long as something is kept."""
        self._sweeper = None
        oldest = self._clock() - IDLE_TIME
        for address, kept in tuple(self._idle.items()):
            for channel in [channel for channel in kept if channel.idle_since <= oldest]:
                kept.remove(channel)
                channel.close()
            if not kept:
                del self._idle[address]
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_TIME / 2, self._sweep)

    def _lost(self, channel: Channel) -> None:
        self._open.discard(channel)
        self._closed_one.set()
        kept = self._idle.get(channel.address)
        if kept is not None and channel in kept:
            kept.remove(channel)

    def disown(self, channel: Channel) -> None:
        """Its transport belongs to a tunnel now."""
        self._open.discard(channel)

    def forget(self, address: Address) -> None:
        """Close the connections kept to an address whose replica is leaving; running requests go on."""
        for channel in self._idle.pop(address, ()):
            channel.close()

    @property
    def counts(self) -> tuple[int, int]:
        """Open to replicas, and of those unused. WebSockets are not among them."""
        return len(self._open), sum(len(kept) for kept in self._idle.values())

    async def close(self) -> None:
        """Close everything; requests still running end as if their replicas had gone."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        for channel in tuple(self._open):
            channel.transport.abort()
        while self._open:
            self._closed_one.clear()
            await self._closed_one.wait()


def _watch(sock: socket.socket) -> None:
    """TCP_NODELAY is set by asyncio itself."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):  # not all of them everywhere
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
