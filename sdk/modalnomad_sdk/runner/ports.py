"""Waiting for the port of a `web_server` to answer."""

from __future__ import annotations

import asyncio
import errno
import socket

from modalnomad_sdk.declarations import EndpointDeclaration

from .network import listening_ports

_HOSTS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_CONNECT_LIMIT = 1.0
_PAUSES = (0.002,) * 25 + (0.01,) * 25
"""Then 50 ms: quick servers are seen at once, slow ones cost little."""


class PortNeverOpened(Exception):
    """The message says what was expected, what was found and what to do."""


async def wait_for_port(endpoint: EndpointDeclaration, limit: float) -> tuple[str, int]:
    """(host, port) where the user's server accepts connections.

    Raises:
        PortNeverOpened: nobody did within `limit` seconds.
    """
    assert endpoint.port is not None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    pauses = iter(_PAUSES)
    while True:
        for family, host in _HOSTS:
            if await _accepts(family, host, endpoint.port):
                return host, endpoint.port
        if loop.time() >= deadline:
            raise PortNeverOpened(_explain(endpoint, limit))
        await asyncio.sleep(next(pauses, 0.05))


async def _accepts(family: socket.AddressFamily, host: str, port: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        result = sock.connect_ex((host, port))
        if result == errno.EINPROGRESS:
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (host, port)), _CONNECT_LIMIT)
            except (asyncio.TimeoutError, OSError):  # noqa: UP041 - a class of its own in Python 3.10
                return False
            return True
        return result == 0


def _explain(endpoint: EndpointDeclaration, limit: float) -> str:
    others = ", ".join(str(port) for port in listening_ports()) or "no port"
    return (
        f"`{endpoint.name}` ({endpoint.where}) is a web_server({endpoint.port}), but nothing accepted connections on "
        f"port {endpoint.port} within {limit:g} s; listening now: {others}. The function must start a server on that "
        f"port and return; a server that needs longer wants web_server({endpoint.port}, startup_timeout=…)"
    )
