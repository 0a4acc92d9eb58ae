"""Both ways to an endpoint of `serve`: its URL (by Host header, as `*.localhost` needs a resolver) and its own port.

with doors(s, "f") as clients:
    for client in clients:
        client.get("/")
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import websockets.sync.client

from tests.support.serve import Serve

TIMEOUT = httpx.Timeout(60)
LONG = 30.0
"""Seconds after which a test has failed."""


def endpoint(s: Serve, name: str | None) -> dict[str, Any]:
    """The endpoint's event; without a name, of the only one."""
    endpoints = s.endpoints
    return endpoints[name] if name is not None else next(iter(endpoints.values()))


def host_door(s: Serve, name: str | None = None, **options: Any) -> httpx.Client:
    """A client for the endpoint's URL."""
    url = urlsplit(endpoint(s, name)["url"])
    headers = {"Host": url.netloc, **options.pop("headers", {})}
    base = f"{url.scheme}://127.0.0.1:{url.port}"
    return httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=TIMEOUT, **options)


def direct_door(s: Serve, name: str | None = None, **options: Any) -> httpx.Client:
    """A client for the endpoint's own port."""
    return httpx.Client(base_url=s.url(endpoint(s, name)["name"]), trust_env=False, timeout=TIMEOUT, **options)


@contextmanager
def doors(s: Serve, name: str | None = None, **options: Any) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """By host name first, then by port."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(host_door(s, name, **options)),
            stack.enter_context(direct_door(s, name, **options)),
        )


@contextmanager
def web_socket(
    s: Serve, path: str, name: str | None = None, *, by_host: bool = False, **options: Any
) -> Iterator[websockets.sync.client.ClientConnection]:
    """A WebSocket to the endpoint through one of its doors."""
    event = endpoint(s, name)
    url = urlsplit(event["url"] if by_host else event["direct_url"])
    raw = socket.create_connection(("127.0.0.1", url.port or 80), timeout=60)
    with websockets.sync.client.connect(f"ws://{url.netloc}{path}", sock=raw, proxy=None, **options) as connection:
        yield connection


def replicas(s: Serve, *states: str) -> set[tuple[str, str, str]]:
    """Function, pool and name of every replica there was, or of those that were in one of the states."""
    return {
        (event["function"], event["pool"], event["replica"])
        for event in list(s.events)
        if event["event"] == "replica" and (not states or event["state"] in states)
    }


def replicas_told(s: Serve, count: int, *states: str) -> set[tuple[str, str, str]]:
    """The same once there are so many, or more: what is told of a replica is read after its answer was."""
    s.wait_for(lambda _: len(replicas(s, *states)) >= count, LONG, what=f"{count} replicas {states or ''}".rstrip())
    return replicas(s, *states)
