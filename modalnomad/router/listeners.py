"""Sockets a router accepts clients on: the main one, and one per `direct_url`."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from pathlib import Path

from modalnomad.model.errors import BackendRefused
from modalnomad.router.connection import Connection
from modalnomad.router.gate import Gate

BACKLOG = 2048


class Listeners:
    """Opens and closes them; the connections they accept belong to the gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._servers: dict[str | None, asyncio.Server] = {}

    async def open(
        self, address: str, port: int, bound_host: str | None = None, tls: ssl.SSLContext | None = None
    ) -> int:
        """Listen and return the port (`port` 0: a free one). With `bound_host` every request there is for that host.
        Raises BackendRefused when the port is taken or the address is not this machine's."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: Connection(self._gate, bound_host), address, port, backlog=BACKLOG, ssl=tls
            )
        except OSError as error:
            raise _refused(address, port, error) from error
        self._servers[bound_host] = server
        return int(server.sockets[0].getsockname()[1])

    def port(self, bound_host: str | None = None) -> int | None:
        """Where it listens; None: it does not."""
        server = self._servers.get(bound_host)
        return int(server.sockets[0].getsockname()[1]) if server is not None else None

    def close(self, bound_host: str | None) -> None:
        """Stop accepting there; connections already accepted go on."""
        server = self._servers.pop(bound_host, None)
        if server is not None:
            server.close()

    def close_all(self) -> None:
        """Stop accepting."""
        for bound_host in tuple(self._servers):
            self.close(bound_host)


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
    inodes = {
        fields[9]
        for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        if table.exists()
        for line in table.read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(entry) in wanted for entry in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue  # it ended, or is somebody else's
    return None
