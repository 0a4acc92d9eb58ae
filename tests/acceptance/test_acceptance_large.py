"""Bodies larger than any buffer: they stream both ways, whoever is slow slows the other down, and memory stays flat.

LARGE_MIB sets their size (default 1024).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.support.doors import direct_door
from tests.support.repository import persona
from tests.support.serve import Serve, serve

MIB = 1024 * 1024
SIZE = int(os.environ.get("LARGE_MIB", "1024"))
ALLOWED = 32
"""MiB the router's process may grow by."""
PIECE = bytes(range(256)) * 256

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def big() -> Iterator[Serve]:
    with serve(persona("big_body")) as s:
        with direct_door(s) as client:  # warm: what a first request costs is not what is measured
            assert client.post("/in", content=b"x").text == "1"
            assert len(client.get("/out?mib=8").content) == 8 * MIB
        yield s


class Growth:
    """How much more memory a process had at its most than at the start, MiB."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._start = self._process.memory_info().rss
        self._most = self._start
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)

    def __enter__(self) -> Growth:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    @property
    def mib(self) -> float:
        return (self._most - self._start) / MIB


def connect(s: Serve) -> socket.socket:
    host, port = s.url().removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=120)


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Head of the final answer (interim ones are skipped), and the start of the body."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            assert piece, data
            data += piece
        head, _, data = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 1"):
            return head, data


def test_a_large_answer_to_a_slow_client(big: Serve) -> None:
    with Growth(big.pid) as growth, connect(big) as sock:
        sock.sendall(f"GET /out?mib={SIZE} HTTP/1.1\r\nHost: {big.url()[7:]}\r\nConnection: close\r\n\r\n".encode())
        head, rest = read_head(sock)
        assert head.startswith(b"HTTP/1.1 200 "), head
        received = len(rest)
        buffer = bytearray(MIB)
        while count := sock.recv_into(buffer):
            received += count
            if received % (SIZE * MIB // 4) < count:
                time.sleep(0.5)  # the slow client: everything behind it has to wait
    assert received == SIZE * MIB
    assert growth.mib < ALLOWED


def test_a_large_request_to_a_slow_app(big: Serve) -> None:
    head = f"POST /in?stall=2 HTTP/1.1\r\nHost: {big.url()[7:]}\r\nContent-Length: {SIZE * MIB}\r\n\r\n".encode()
    sent = 0
    sent_while_stalled = 0
    with Growth(big.pid) as growth, connect(big) as sock:
        begun = time.monotonic()
        sock.sendall(head)
        for _ in range(SIZE * 16):
            sock.sendall(PIECE)
            sent += len(PIECE)
            if time.monotonic() - begun < 1.5:
                sent_while_stalled = sent
        _, body = read_head(sock)
        while len(body) < len(str(SIZE * MIB)):
            body += sock.recv(100)
    assert body.strip() == str(SIZE * MIB).encode()
    assert sent_while_stalled < 64 * MIB, "the app's slowness reaches the client"
    assert growth.mib < ALLOWED


def test_a_large_body_in_chunks_both_ways_at_once(big: Serve) -> None:
    quarter = max(SIZE // 4, 1)

    def pieces() -> Iterator[bytes]:
        for _ in range(quarter * 16):
            yield PIECE

    totals: list[str] = []

    def upload() -> None:
        with direct_door(big) as client:
            totals.append(client.post("/in", content=pieces()).text)

    with Growth(big.pid) as growth, direct_door(big) as client:
        thread = threading.Thread(target=upload)
        thread.start()
        with client.stream("GET", f"/out?mib={quarter}") as answer:
            received = sum(map(len, answer.iter_raw()))
        thread.join()
    assert received == quarter * MIB
    assert totals == [str(quarter * MIB)]
    assert growth.mib < ALLOWED
