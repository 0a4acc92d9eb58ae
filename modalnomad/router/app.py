"""The hot path: one request, top to bottom."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from modalnomad_sdk import contract

from modalnomad.kit.clock import Clock, monotonic
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.router import outcomes, websocket
from modalnomad.router.activator import Lease
from modalnomad.router.auth import Caller
from modalnomad.router.gate import Gate
from modalnomad.router.parameters import pool_key
from modalnomad.router.replies import Answer, Reply
from modalnomad.router.request import Exchange, too_large
from modalnomad.router.table import Match, RouteTable
from modalnomad.router.telemetry import Counters
from modalnomad.router.upstream import TryElsewhere, Upstream
from modalnomad.settings import RouterSettings

logger = logging.getLogger("modalnomad.router")

ATTEMPTS: Final = 10
"""Replicas out of reach that one request is offered to. One that is full costs no attempt, only time."""
_PRIVATE: Final = contract.PREFIX.strip("/").encode()


class Authorizer(Protocol):
    """`auth.Auth`."""

    def authorize(self, match: Match, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """Raises Reply 401, 403."""


class Admission(Protocol):
    """`limits.Limits`."""

    def admit(self, match: Match, caller: Caller, now: float) -> None:
        """Raises Reply 429."""


class Leases(Protocol):
    """`activator.Activator`."""

    def lease(
        self,
        match: Match,
        key: PoolKey,
        avoid: frozenset[ReplicaKey] = frozenset(),
        *,
        until: float | None = None,
        request_id: bytes = b"",
    ) -> AbstractAsyncContextManager[Lease]:
        """Raises Reply 429, 503, 504."""


class Router:
    """Steps in the order of design §5. `table` is swapped whole."""

    def __init__(
        self,
        *,
        table: RouteTable,
        auth: Authorizer,
        limits: Admission,
        activator: Leases,
        upstream: Upstream,
        settings: RouterSettings,
        counters: Counters | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.table = table
        self._auth = auth
        self._limits = limits
        self._activator = activator
        self._upstream = upstream
        self._settings = settings
        self._clock = clock
        self.gate = Gate(self.handle, settings, counters=counters, clock=clock)

    async def handle(self, exchange: Exchange) -> None:
        """Each step returns a value or raises a Reply; nothing else decides a status."""
        try:
            match = self.table.match(exchange.host)  # 404
            exchange.meter = match.meter
            exchange.show_private = match.route.ephemeral
            check_head(exchange, self._settings.body_limit)  # 400, 404, 413, 426
            caller = self._auth.authorize(match, exchange.head.headers)  # 401, 403
            self._limits.admit(match, caller, self._clock())  # 429
            key = pool_key(match, exchange.head.query)  # 422
            avoid: frozenset[ReplicaKey] = frozenset()
            until, missed = self._clock() + self._settings.queue_timeout, 0
            while missed < ATTEMPTS:
                try:
                    async with self._activator.lease(  # 429, 503, 504
                        match, key, avoid, until=until, request_id=exchange.request_id
                    ) as lease:
                        return await self._upstream.forward(exchange, lease, caller, self.gate)  # 502, 503, 504
                except TryElsewhere as miss:
                    avoid |= miss.avoid
                    missed += miss.reason != "busy"
                    self.gate.counters.retried(miss.reason)
                    if miss.reason == "busy" and self._clock() >= until:
                        raise outcomes.queue_timeout() from miss
            raise Reply(502, "replica_gone", f"None of {ATTEMPTS} replicas tried took the request.")
        except Reply as reply:
            self._reply(exchange, reply.answer)
        except Exception:
            logger.exception("request %s failed in the router", exchange.request_id.decode())
            self._reply(exchange, Answer(500, "internal_error", "The router failed; its log says more.", close=True))

    def _reply(self, exchange: Exchange, answer: Answer) -> None:
        if answer.status >= 500:
            logger.warning(
                "%s %s: %d %s: %s%s",
                exchange.request_id.decode(),
                exchange.host,
                answer.status,
                answer.code,
                answer.detail,
                f"\n{answer.private}" if answer.private else "",
            )
        exchange.reply(answer)


def check_head(exchange: Exchange, body_limit: int) -> None:
    """What can be refused without asking who sent it. Raises Reply 400, 404, 413, 426."""
    head = exchange.head
    if is_private(head.path):
        raise Reply(404, "unknown_endpoint", "Paths under /.modalnomad/ are the platform's own.")
    if body_limit and head.length is not None and head.length > body_limit:
        raise too_large(body_limit)
    if websocket.wanted(head):
        websocket.check_request(head)
        exchange.websocket = True


def is_private(path: bytes) -> bool:
    """Could a replica read this path as one under /.modalnomad/? Servers decode percent signs, and some fold slashes
    and dots, so every such reading counts."""
    if b"." not in path and b"%" not in path:
        return False
    decoded = unquote_to_bytes(path).lower()
    plain = posixpath.normpath(decoded.replace(b"\\", b"/")).lstrip(b"/")
    return plain == _PRIVATE or plain.startswith(_PRIVATE + b"/")
