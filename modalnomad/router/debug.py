"""/debug: what a router knows at this moment, for a person who wonders why.

No secret is in it: no token, no ticket, no value of a class parameter (a pool shows their hash), no environment, no
output of user code.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from modalnomad import __version__
from modalnomad.kit.clock import Clock, monotonic
from modalnomad.router.places import Place
from modalnomad.router.pool import Pool
from modalnomad.router.server import RouterServer
from modalnomad.router.table import Match


def snapshot(router: RouterServer, clock: Clock = monotonic) -> dict[str, Any]:
    """Ready for JSON. Times are Unix time in `since` and in `…_at` of decisions and the table, else seconds ago
    (`…_ago`)."""
    counters, now = router.counters, clock()
    table = router.router.table
    return {
        "version": __version__,
        "pid": os.getpid(),
        "time": time.time(),
        "port": router.port,
        "ready": not router.unready,
        "may_drain": router.activator.may_drain(),
        "reasons": list(router.unready),
        "stale": {source: {"since": since} for source, since in router.stale().items()},
        "requests": {
            "in_flight": counters.running,
            "connections": counters.connections,
            "websockets": counters.websockets,
            "over": counters.requests,
        },
        "table": {"index": table.index, "changes": counters.flips, "changed_at": counters.flipped_at or None},
        "routes": [_route(match) for match in table.matches()],
        "pools": [_pool(router, pool, now) for pool in router.activator.pools()],
        "decisions": [asdict(decision) for decision in reversed(router.activator.observer.decisions)],
    }


def tasks() -> dict[str, Any]:
    """asyncio's tasks by name, with how many have it and where they wait."""
    counted: Counter[tuple[str, str]] = Counter()
    for task in asyncio.all_tasks():
        frames = task.get_stack(limit=1)
        where = f"{frames[0].f_code.co_qualname}:{frames[0].f_lineno}" if frames else ""
        counted[task.get_name(), where] += 1
    return {"tasks": [{"name": name, "at": where, "count": count} for (name, where), count in sorted(counted.items())]}


def _route(match: Match) -> dict[str, Any]:
    route, revision = match.route, match.revision
    return {
        "hosts": list(route.hosts),
        "environment": route.environment,
        "app": route.app,
        "function": revision.function.tag,
        "endpoint": route.endpoint.name,
        "kind": route.endpoint.kind,
        "auth": route.endpoint.requires_proxy_auth,
        "revision": revision.id,
        "timeout": revision.function.timeout,
        "image": revision.image.digest,
        "bundle": revision.bundle,
    }


def _pool(router: RouterServer, pool: Pool, now: float) -> dict[str, Any]:
    life = router.activator.observer.life(pool.key.revision)
    breakers = pool.starts_allowed
    is_open = not breakers.open(now)
    failure, retry_after = breakers.shut(now)
    return {
        "pool": str(pool.key),
        "revision": pool.key.revision,
        "environment": life.environment if life is not None else None,
        "app": life.app if life is not None else None,
        "function": life.function if life is not None else None,
        "state": pool.state,
        "retired": pool.retired,
        "waiting": len(pool.tickets),
        "running": pool.running,
        "wakes": pool.wakes,
        "starts": pool.starts,
        "used_ago": now - pool.used_at,
        "policy": asdict(pool.policy),
        "breaker": {
            "open": is_open,
            "retry_after": retry_after if is_open else None,
            "last_failure": failure.reason if failure is not None else None,
        },
        "replicas": [_place(place, now) for place in pool.places],
    }


def _place(place: Place, now: float) -> dict[str, Any]:
    return {
        "replica": place.key.name,
        "state": place.state,
        "running": place.running,
        "address": str(place.address) if place.address is not None else None,
        "asked_ago": now - place.asked_at,
        "changed_ago": now - place.changed_at,
        "idle_ago": None if place.running or not place.idle_since else now - place.idle_since,
        "killed": place.killed,
        "to_be_replaced": place.leaving or None,
        "leaves_because": place.why.text if place.why is not None and not place.live else None,
    }
