"""What watching costs: CPU of the router for each request, with access log and scrapes on, and with both off.

    python benchmarks/access_log.py [REQUESTS [ROUNDS]]

Two `modalnomad serve` of one program, one of them with an access log in a file and an admin listener that is scraped
once in each. Each round sends REQUESTS over kept connections, with heads as browsers send them, to one and then to
the other, so that both have the same neighbours on the machine. What counts is the CPU time of the router's process,
the log's thread included. Printed: microseconds for each request, and the ratio. Goal: at least 0.95.
"""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from common import free_port, serving

PROGRAM = """import modal

app = modal.App("watched")


async def web(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@app.function()
@modal.concurrent(max_inputs=1000)
@modal.asgi_app()
def site():
    return web
"""
HEAD = b"""GET /orders/7?page=2 HTTP/1.1
Host: localhost
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8
Accept-Language: en-GB,en;q=0.8,de;q=0.5,fr;q=0.3
Accept-Encoding: gzip, deflate, br, zstd
Referer: http://localhost/orders
Cookie: session=0123456789abcdef0123456789abcdef; theme=dark
Upgrade-Insecure-Requests: 1
Sec-Fetch-Dest: document
Sec-Fetch-Mode: navigate
Sec-Fetch-Site: same-origin
Sec-Fetch-User: ?1
Priority: u=0, i

""".replace(b"\n", b"\r\n")
CONNECTIONS = 8
LIMIT = 60.0


@dataclass
class Router:
    """One running `serve`."""

    name: str
    process: psutil.Process
    port: int
    admin_port: int | None = None

    def cpu(self) -> float:
        """Seconds it has used so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def router(name: str, folder: Path, **settings: str) -> Iterator[Router]:
    """Until left."""
    with serving(folder, settings) as (pid, port):
        admin = settings.get("MODALNOMAD_ROUTER__ADMIN_PORT")
        yield Router(name, psutil.Process(pid), port, int(admin) if admin else None)


def send(port: int, requests: int) -> None:
    """Over a few connections in turn; each answer is read to its end."""
    socks = [socket.create_connection(("127.0.0.1", port), LIMIT) for _ in range(CONNECTIONS)]
    for _ in range(requests // CONNECTIONS):
        for sock in socks:
            sock.sendall(HEAD)
        for sock in socks:
            got = b""
            while not got.endswith(b"\r\n\r\nok"):
                piece = sock.recv(65536)
                got += piece
                if not piece:
                    raise SystemExit(f"not answered: {got!r}")
    for sock in socks:
        sock.close()


def measure(target: Router, requests: int) -> float:
    """Microseconds of CPU for each request."""
    before = target.cpu()
    send(target.port, requests)
    if target.admin_port is not None:
        with urllib.request.urlopen(f"http://127.0.0.1:{target.admin_port}/metrics", timeout=LIMIT) as answer:
            answer.read()
    time.sleep(0.6)  # the last lines are written
    used = target.cpu() - before
    return used / requests * 1e6


def main(requests: int, rounds: int) -> None:
    """Print both figures and their ratio."""
    with tempfile.TemporaryDirectory(prefix="mn-watching-") as name:
        folder = Path(name)
        (folder / "program.py").write_text(PROGRAM)
        log = folder / "access.log"
        watched = {"MODALNOMAD_ROUTER__ACCESS_LOG": str(log), "MODALNOMAD_ROUTER__ADMIN_PORT": str(free_port())}
        with router("off", folder) as off, router("on", folder, **watched) as on:
            costs: dict[str, list[float]] = {"off": [], "on": []}
            for target in (off, on):
                send(target.port, requests // 4)
            for number in range(rounds):
                for target in (off, on) if number % 2 else (on, off):
                    costs[target.name].append(measure(target, requests))
        lines = len(log.read_text().splitlines())
        sent = requests // CONNECTIONS * CONNECTIONS * rounds + requests // 4 // CONNECTIONS * CONNECTIONS
        assert lines == sent, f"{lines} lines of {sent} requests"
    print(f"CPU for each request, {rounds} rounds of {requests}, median and lower quartile:")
    for which, values in costs.items():
        print(f"  {which}: {statistics.median(values):.1f} us, {statistics.quantiles(values)[0]:.1f} us")
    ratios = [before / after for before, after in zip(costs["off"], costs["on"], strict=True)]
    print(f"ratio off/on: {statistics.median(ratios):.3f} (median of the rounds' own)")


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [5000, 25][len(given) :]))
