"""The listening socket: there before user code, and never in the hands of what the user starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket

from .config import BadConfiguration, Listen

BACKLOG = 4096
HEAD_TIME = 10.0
"""Seconds from a connection to its first request's whole head: on TCP anybody may connect, and say nothing for ever.
Whoever had no ticket then is not kept; routers may be idle."""
MOST_STRANGERS = 8192
"""Connections without a whole head; on a system of few files, half of these."""


class Strangers:
    """Connections that have not sent a whole head yet. Of too many the oldest is cut off: whoever opens them must not
    take the last file from the routers, who send theirs at once."""

    def __init__(self) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.most = MOST_STRANGERS if files < 0 else min(MOST_STRANGERS, max(files // 2, 1))
        self._waiting: dict[asyncio.Transport, None] = {}

    def came(self, transport: asyncio.Transport) -> None:
        """A new connection."""
        self._waiting[transport] = None
        if len(self._waiting) > self.most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.abort()

    def known(self, transport: asyncio.Transport) -> None:
        """Its head is there, or it has ended."""
        self._waiting.pop(transport, None)

    async def heard(self, within: float) -> None:
        """Return when each has sent its head or ended, at the latest after `within` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        await asyncio.sleep(0)  # what was accepted in this turn is among them after it
        while self._waiting and loop.time() < deadline:  # noqa: ASYNC110 - bounded, once
            await asyncio.sleep(0.005)


def unread(transport: asyncio.BaseTransport) -> bytes:
    """What came before the connection was reset, and nobody has read: for `connection_lost`, after a write failed."""
    found = bytearray()
    with contextlib.suppress(OSError):
        while data := os.read(transport.get_extra_info("socket").fileno(), 65536):
            found += data
    return bytes(found)


def open_listener(listen: Listen) -> socket.socket:
    """The replica's listening socket, close-on-exec.

    Raises:
        BadConfiguration: the inherited one is not a listening socket.
        OSError: the port cannot be bound.
    """
    if listen.fd is not None:
        return _inherited(listen.fd)
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections that are accepted have it too: a router's machine may vanish without a word.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.bind((listen.host, listen.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {listen.host}:{listen.port}: {error.strerror}") from error
    return sock


def _inherited(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise BadConfiguration([f"file descriptor {fd} is not a socket: {error.strerror}"]) from error
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise BadConfiguration([f"file descriptor {fd} is a socket that does not listen"])
    sock.set_inheritable(False)
    sock.listen(BACKLOG)
    return sock


def keep_from_children(*descriptors: int) -> None:
    """Also what the user forks without exec (multiprocessing) must not hold these open."""
    files = [(fd, _identity(fd)) for fd in descriptors]

    def close() -> None:
        for fd, identity in files:
            # The number may mean another file by now.
            if _identity(fd) == identity:
                os.close(fd)

    os.register_at_fork(after_in_child=close)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None  # closed
    return status.st_dev, status.st_ino


def refuse_newcomers(sock: socket.socket) -> list[socket.socket]:
    """From here on connecting fails, whoever else still holds a copy of this socket. Returns those that had connected
    and were not accepted: closed with the listener, they would be cut off."""
    sock.setblocking(False)
    late = _not_accepted(sock)  # before: a TCP socket resets them as soon as it listens no more
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return late  # ended already: nobody can connect
    return late + _not_accepted(sock)  # after: a Unix socket keeps who came between


def _not_accepted(sock: socket.socket) -> list[socket.socket]:
    found: list[socket.socket] = []
    while True:
        try:
            found.append(sock.accept()[0])
        except ConnectionAbortedError:
            continue  # that one has left
        except OSError:
            return found
