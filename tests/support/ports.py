"""Ports of loopback that are a test's own, also while nobody listens there.

One that was found free and let go is anybody's: the next server that asks for any port, also one of the other worker's
tests, may be given it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """One that the system gives nobody else within the block: bound, and not listened on. Connections are refused; a
    server that asks for this very port gets it, and again after it was gone, if it sets SO_REUSEADDR, as servers do."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
