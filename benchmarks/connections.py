"""Memory of the router for each idle connection and each open WebSocket.

    python benchmarks/connections.py [CONNECTIONS [WEBSOCKETS]]

One `modalnomad serve`; connections on which one request was answered and that are kept, then WebSockets that have
echoed one message. What counts is the router's own memory (pages that no other process shares; the system's socket
buffers are not in it) divided by their number, beyond what it had with half as many. Goals: at most 6 KB and 3 KB.
"""

from __future__ import annotations

import base64
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import serving

PROGRAM = """import modal

app = modal.App("connections")


async def web(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@app.function(timeout=3600)
@modal.concurrent(max_inputs=1000)
@modal.asgi_app()
def site():
    return web
"""
LIMIT = 60.0
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)
MESSAGE = b"\x82\x82\0\0\0\0hi"
"""Binary, two bytes, masked with zeros."""


def answered(sock: socket.socket, sent: bytes, status: bytes, end: bytes) -> None:
    """Send, and read up to `end`."""
    sock.sendall(sent)
    got = b""
    while not got.endswith(end):
        piece = sock.recv(4096)
        got += piece
        if not piece or not got.startswith(status[: len(got)]):
            raise SystemExit(f"not answered: {got!r}")


def idle(port: int) -> socket.socket:
    """A kept connection with one answer behind it."""
    sock = socket.create_connection(("127.0.0.1", port), LIMIT)
    answered(sock, GET, b"HTTP/1.1 200", b"ok")
    return sock


def websocket(port: int) -> socket.socket:
    """An open one with one echo behind it."""
    sock = socket.create_connection(("127.0.0.1", port), LIMIT)
    answered(sock, UPGRADE, b"HTTP/1.1 101", b"\r\n\r\n")
    answered(sock, MESSAGE, b"\x82\x02", b"hi")
    return sock


def memory(process: psutil.Process) -> int:
    """Bytes of its own, once that no longer grows."""
    before, now = -1, int(process.memory_full_info().uss)
    while now > before:
        time.sleep(1)
        before, now = now, int(process.memory_full_info().uss)
    return now


def measure(process: psutil.Process, port: int, count: int, wanted: str) -> float:
    """Bytes for each of `count` more."""
    make = {"idle connection": idle, "WebSocket": websocket}[wanted]
    held = [make(port) for _ in range(count // 2)]
    before = memory(process)
    held += [make(port) for _ in range(count)]
    each = (memory(process) - before) / count
    for sock in held:
        sock.close()
    time.sleep(1)
    return each


def main(connections: int, websockets: int) -> None:
    """Print both figures."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="mn-connections-") as name:
        folder = Path(name)
        (folder / "program.py").write_text(PROGRAM)
        with serving(folder, {}) as (pid, port):
            idle(port).close()
            router = psutil.Process(pid)
            for wanted, count in (("idle connection", connections), ("WebSocket", websockets)):
                print(f"{wanted}: {measure(router, port, count, wanted) / 1024:.2f} KB each of {count}", flush=True)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [4000, 1500][len(given) :]))
