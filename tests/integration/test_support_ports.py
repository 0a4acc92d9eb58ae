"""Ports that tests hold for servers that come later, or that go and come back."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.support.ports import held_port

IP_LOCAL_PORT_RANGE = 51
"""Of Linux 6.3: which ports a socket is given that asks for any."""


def asks_for_any(only: int) -> socket.socket:
    """A socket that the system can give this port and no other."""
    asking = socket.socket()
    try:
        asking.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", only << 16 | only))
    except OSError as error:
        asking.close()
        pytest.skip(f"no range of ports for one socket here: {error}")
    return asking


def test_who_asks_for_any_port_is_not_given_it() -> None:
    with held_port() as port, asks_for_any(port) as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", 0))


def test_a_connection_is_not_given_it_either() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        held_port() as port,
        asks_for_any(port) as client,
        pytest.raises(OSError, match="assign requested address"),
    ):
        client.connect(server.getsockname())


def test_whoever_asks_for_this_very_port_gets_it_and_gets_it_again() -> None:
    with held_port() as port:
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)) as server:
                socket.create_connection(("127.0.0.1", port)).close()
                server.accept()[0].close()
