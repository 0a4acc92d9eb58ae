"""When a client that waits is asked, with an interim answer, whether it is still there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modalnomad.router import connection
from modalnomad.router.gate import Gate
from modalnomad.router.request import Exchange
from modalnomad.settings import RouterSettings
from tests.support.clock import ManualClock

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


class StubTransport(asyncio.Transport):
    """Remembers what was written, and when."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.clock = clock
        self.written: list[tuple[float, bytes]] = []

    def write(self, data: Any) -> None:
        self.written.append((self.clock(), bytes(data)))

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """As asked."""

    def abort(self) -> None:
        """As asked."""

    def get_write_buffer_size(self) -> int:
        return 0


async def never(exchange: Exchange) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("found", "minor", "seconds"),
    [
        ("half_closed", 1, [1, 11, 71, 371]),
        ("there", 1, [1, 11, 71, 371]),
        ("half_closed", 0, []),
    ],
)
async def test_a_client_whose_body_is_not_read_is_asked_a_few_times(
    found: str, minor: int, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "presence", lambda transport: found)
    clock = ManualClock(0.0)
    gate = Gate(never, RouterSettings(), clock=clock)
    made, transport = connection.Connection(gate), StubTransport(clock)
    made.connection_made(transport)
    made.data_received(b"POST / HTTP/1.%d\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" % minor + bytes(100_000))
    for _ in range(1000):
        made.tick(clock.advance(1))
    assert transport.written == [(second, INTERIM) for second in seconds]
    made.connection_lost(None)
    await gate.close()
