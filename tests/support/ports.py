"""Ports of loopback that are a test's own, also while nobody listens there.

One that was found free and let go is anybody's: the next server that asks for any port, also one of the other worker's
tests, may be given it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

TURNS = 10
"""Of the event loop, more than there are from a connection's acceptance to the first step of the task that has it."""


@contextmanager
def held_port() -> Iterator[int]:
    """One that the system gives nobody else within the block: bound, and not listened on. Connections are refused; a
    server that asks for this very port gets it, and again after it was gone, if it sets SO_REUSEADDR, as servers do."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


async def stop_listening(server: asyncio.Server) -> None:
    """Connections are refused when this returns, and those that were being made are made: one between its acceptance
    and its transport when the server closes is never answered, and not cut or closed either."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    try:
        for _ in range(TURNS):
            await asyncio.sleep(0)
    finally:
        server.close()
