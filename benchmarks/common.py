"""What several benchmarks need."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LIMIT = 60.0
"""Seconds."""
WEB = """from fastapi import FastAPI

web = FastAPI()


@web.get("/")
def hello():
    return {"hello": "world"}
"""
"""The app whose start is measured: `by_hand` as it is, else as an App's endpoint."""


def by_hand(folder: Path, python: Path) -> float:
    """Seconds from starting uvicorn, on WEB in `by_hand.py` of the folder, to its first answer."""
    port = free_port()
    command = [str(python), "-m", "uvicorn", "by_hand:web", "--port", str(port), "--log-level", "warning"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        while ask(port) is None:
            if time.perf_counter() - begun > LIMIT:
                raise SystemExit("uvicorn did not answer")
            time.sleep(0.002)
        return time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(LIMIT)


def ask(port: int) -> bytes | None:
    """The answer's body; None while nobody listens. Ends the benchmark for anything but 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read()
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()
    if response.status != 200:
        raise SystemExit(f"not answered: {response.status} {body!r}")
    return body


def free_port() -> int:
    """Nobody listens there now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, settings: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """`modalnomad serve` of `folder`'s program.py, without a rate limit: its process and the port of its endpoint."""
    environment = os.environ | {"MODALNOMAD_HOME": f"{folder}/home", "MODALNOMAD_ROUTER__RATE": "0"} | settings
    command = [sys.executable, "-m", "modalnomad", "serve", "--json", str(folder / "program.py")]
    serve = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert serve.stdout is not None
        events = map(json.loads, serve.stdout)
        endpoint = next(event for event in events if event["event"] == "endpoint")
        next(event for event in events if event["event"] == "ready")
        yield serve.pid, int(endpoint["direct_url"].rstrip("/").rpartition(":")[2])
    finally:
        serve.send_signal(signal.SIGINT)
        serve.communicate(timeout=LIMIT)
