"""Sockets a router accepts clients on: the main one, and one per `direct_url`."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from modalnomad.kit.port_holder import port_holder
from modalnomad.model.errors import BackendRefused
from modalnomad.router.connection import Connection
from modalnomad.router.gate import Gate

BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class _Door:
    """One of them."""

    server: asyncio.Server
    connection: Callable[[], Connection]
    tls: ssl.SSLContext | None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.sockets[0].getsockname()[1])


class Listeners:
    """Opens and closes them; the connections they accept belong to the gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._doors: dict[str | None, _Door] = {}

    async def open(
        self, address: str, port: int, bound_host: str | None = None, tls: ssl.SSLContext | None = None
    ) -> int:
        """Listen and return the port (`port` 0: a free one). With `bound_host` every request there is for that host.
        Raises BackendRefused when the port is taken or the address is not this machine's."""
        loop = asyncio.get_running_loop()

        def connection() -> Connection:
            return Connection(self._gate, bound_host)

        try:
            server = await loop.create_server(connection, address, port, backlog=BACKLOG, ssl=tls)
        except OSError as error:
            raise _refused(address, port, error) from error
        door = self._doors[bound_host] = _Door(server, connection, tls)
        return door.port

    def port(self, bound_host: str | None = None) -> int | None:
        """Where it listens; None: it does not."""
        door = self._doors.get(bound_host)
        return door.port if door is not None else None

    def close(self, bound_host: str | None) -> None:
        """Stop accepting there. Connections already accepted go on, and those that the system has accepted for us are
        taken in: closing the socket would reset them with a request on its way."""
        door = self._doors.pop(bound_host, None)
        if door is None:
            return
        held: list[socket.socket] = []
        with suppress(OSError):  # no file may be opened any more: then the system resets them
            for sock in door.server.sockets:
                held.append(socket.socket(fileno=os.dup(sock.fileno())))  # noqa: PERF401 - kept where a later one fails
        door.server.close()
        for client in (client for sock in held for client in _accepted(sock)):
            self._gate.tasks.spawn(_take_in(client, door), "late client")

    def close_all(self) -> None:
        """Stop accepting."""
        for bound_host in tuple(self._doors):
            self.close(bound_host)


def _accepted(listener: socket.socket) -> list[socket.socket]:
    """Clients in the system's queue; the listener is closed at once behind the last of them."""
    clients = []
    with listener:
        listener.setblocking(False)
        with suppress(OSError):  # empty, or the client is gone again
            while True:
                clients.append(listener.accept()[0])
    for client in clients:
        client.setblocking(False)
    return clients


async def _take_in(client: socket.socket, door: _Door) -> None:
    connection = door.connection()
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client, ssl=door.tls)
    except OSError:
        return  # its TLS handshake failed, or it left
    except asyncio.CancelledError:
        # A connection that was made just before is closed by uvloop without a word to it.
        connection.connection_lost(None)
        raise


def _refused(address: str, port: int, error: OSError) -> BackendRefused:
    where = f"{address}:{port}"
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        who = f"held by {holder}" if holder else "held by another program"
        return BackendRefused(
            f"The router cannot listen on {where}: the port is {who}.",
            "Stop that program, or choose another port (0 takes a free one).",
        )
    if error.errno == errno.EACCES:
        hint = "Ports below 1024 need more rights; choose a higher one and put a proxy in front."
    else:
        hint = "Check that the address belongs to this machine."
    return BackendRefused(f"The router cannot listen on {where}: {error.strerror or error}.", hint)


def holder_of(port: int) -> str | None:
    """`python (process 4711)` for whoever listens on a TCP port, as far as the kernel tells (Linux)."""
    found = port_holder(port)
    return f"{found[0]} (process {found[1]})" if found is not None else None
