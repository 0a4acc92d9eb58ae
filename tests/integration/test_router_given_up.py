"""Connections that are made just as whoever waited for them stops: closed, and nobody waits for their end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from modalnomad.model.replica import Address, TcpAddress, UnixAddress
from modalnomad.router.channel import Channel
from modalnomad.router.channels import Channels
from modalnomad.router.telemetry import Counters
from tests.support.raw import WAIT
from tests.support.router import served

BOTH_LOOPS = True


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_connection_to_a_replica_made_too_late_keeps_no_router_from_ending(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = Channel.connection_made, str(tmp_path / "replica")

    def give_up(channel: Channel, transport: asyncio.BaseTransport) -> None:
        made(channel, transport)
        connecting.cancel()

    monkeypatch.setattr(Channel, "connection_made", give_up)
    left = asyncio.Event()

    async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        left.set()

    listening = (
        asyncio.start_unix_server(replica, path) if kind == "unix" else asyncio.start_server(replica, "127.0.0.1", 0)
    )
    async with await listening as server:
        address: Address = (
            UnixAddress(path) if kind == "unix" else TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])
        )
        channels = Channels(5.0, counters=Counters())
        connecting = asyncio.get_running_loop().create_task(channels.connect(address))
        with pytest.raises(asyncio.CancelledError):
            await connecting
        async with asyncio.timeout(WAIT):
            await left.wait()
            await channels.close()
        assert channels.counts == (0, 0)


async def test_a_client_taken_in_at_the_very_end_keeps_no_router_from_ending() -> None:
    async with served() as router:
        gate = router.router.gate
        with socket.create_connection(("127.0.0.1", router.port)):  # the loop stands still: the system lets it in
            router.listeners.close_all()
            async with asyncio.timeout(WAIT):
                while not gate.guests:  # noqa: ASYNC110 - the very turn of the loop that makes the connection
                    await asyncio.sleep(0)
                await gate.close()
            assert gate.guests == 0
