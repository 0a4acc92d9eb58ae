"""What several benchmarks need."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LIMIT = 60.0
"""Seconds."""


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
