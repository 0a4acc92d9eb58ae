"""Replicas as Consul's catalog has them: who registered, where, and whether its check passes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.following import Follower
from modalnomad.model.replica import ReplicaKey, TcpAddress
from modalnomad.render.cluster import REPLICA_SERVICE, key_of

RECONCILE: Final = 60.0
"""Seconds after which all are read anew."""
META_ALLOC: Final = "alloc"
META_MAX_INPUTS: Final = "max_inputs"


@dataclass(frozen=True, slots=True)
class Registration:
    """One replica. Its environment's namespace is not told: a replica's key is the same everywhere."""

    key: ReplicaKey
    alloc: str
    """Id of its Nomad allocation."""
    address: TcpAddress
    passing: bool
    """Its check and its node's pass: it was ready a moment ago."""
    max_inputs: int
    """0: not told."""
    service_id: str
    node: str
    """Consul's name of its machine."""


def registration(item: dict[str, Any]) -> Registration | None:
    """From one item of `/v1/health/service`. None: not registered by a job of ours, or its class parameters were too
    long to be told (`CONSUL_META_LIMIT`). Whoever may register services may write what they like into them: it is no
    reason to lose the others."""
    try:
        return _read(item)
    except (ValueError, TypeError, AttributeError):
        return None


def _read(item: dict[str, Any]) -> Registration | None:
    service, node = item.get("Service") or {}, item.get("Node") or {}
    meta = service.get("Meta") or {}
    key = key_of(meta)
    host = service.get("Address") or node.get("Address")
    port = int(service.get("Port") or 0)
    if key is None or not host or not 0 < port < 65536:
        return None
    most = meta.get(META_MAX_INPUTS, "")
    return Registration(
        key=key,
        alloc=meta.get(META_ALLOC, ""),
        address=TcpAddress(str(host), port),
        passing=all(check.get("Status") == "passing" for check in item.get("Checks") or ()),
        max_inputs=int(most) if re.fullmatch(r"[0-9]{1,9}", most) else 0,
        service_id=service.get("ID", ""),
        node=node.get("Node", ""),
    )


async def watch_registrations(
    api: ConsulApi, *, reconcile: float = RECONCILE, on_doubt: Callable[[str], None] = lambda reason: None
) -> AsyncIterator[tuple[Registration, ...]]:
    """All at once, then all again after each change. While Consul is down or says what cannot be believed, nothing
    (`on_doubt` is told why): what was last seen stays in force."""
    follower = Follower(
        f"registrations of {REPLICA_SERVICE}",
        partial(api.service, REPLICA_SERVICE),
        reconcile=reconcile,
        may_empty=True,
        on_doubt=on_doubt,
    )
    last: tuple[Registration, ...] | None = None
    async with aclosing(follower.answers()) as answers:  # type: ignore[type-var]
        async for found in answers:
            made = tuple(one for one in map(registration, found.items) if one is not None)
            if made != last:
                last = made
                yield made
