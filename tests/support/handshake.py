"""WebSocket handshakes by hand."""

from __future__ import annotations

import asyncio
import base64
import hashlib

from tests.support import raw

KEY = base64.b64encode(b"0123456789abcdef").decode()
ACCEPT = base64.b64encode(hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


def handshake(*lines: str, without: str = "", method: str = "GET") -> bytes:
    """A good one, but for the line that starts with `without`, and with these lines more."""
    wanted = [
        f"{method} /ws HTTP/1.1",
        "Host: app.localhost",
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    kept = [line for line in wanted if not without or not line.startswith(without)]
    return "\r\n".join([*kept, *lines, "", ""]).encode()


def switch(*lines: str) -> bytes:
    """The answer that accepts it."""
    wanted = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: upgrade",
        f"Sec-WebSocket-Accept: {ACCEPT}",
    ]
    return "\r\n".join([*wanted, *lines, "", ""]).encode()


async def switches(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts, and then looks whether the router leaves."""
    await backend.read_head(reader)
    writer.write(switch())
    await reader.read()
    backend.left.set()
