"""Calls of Functions and methods that are no web endpoints: leased as requests are, tried again as declared.

What is called and what comes back is pickle of the user's own; nothing here looks into it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from modalnomad_sdk import contract

from modalnomad.model.manifest import Endpoint
from modalnomad.model.replica import Address, PoolKey, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.model.routes import Route
from modalnomad.router import outcomes
from modalnomad.router.ask import ask
from modalnomad.router.channel import Channel
from modalnomad.router.channels import NoSocket
from modalnomad.router.http1 import Headers
from modalnomad.router.leases import Lease
from modalnomad.router.replies import Answer, Reply
from modalnomad.router.table import Match

logger = logging.getLogger("modalnomad.router.calls")

ATTEMPTS: Final = 10
"""Replicas out of reach that one call is offered to."""
MARGIN: Final = 5.0
"""Seconds past the function's timeout in which its replica tells of it by itself."""
LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries to get a place where there is none; a call has no impatient client."""
_PATIENT: Final = frozenset({"queue_timeout", "queue_full", "no_capacity", "too_many_pools", "too_many_connections"})
_HEADERS: Final = 64 * 1024
"""Bytes a pickled result may grow by as JSON of an error."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `payload`: pickle of (args, kwargs), empty: no arguments."""

    revision: Revision
    parameters: str = ""
    """`PoolKey.parameters`."""
    method: str = ""
    """Of a Cls; empty: the Function."""
    payload: bytes = field(default=b"", repr=False)
    tell: bool = False
    """Nobody waits for the answer: what it raises goes to the replica's log."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Request id of all its attempts, in the logs too."""

    @property
    def name(self) -> str:
        """`app/f`, `app/Server.method`."""
        tag = self.revision.function.tag
        return f"{self.revision.app}/{tag}.{self.method}" if self.method else f"{self.revision.app}/{tag}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    result           `body` is pickle of what it returned
    raised, timeout  `body` is JSON {"type", "message", "traceback", "exception"} (contract.CALL_PATH)
    failed           the same, "type" being the router's code of what went wrong: nothing of the user's code raised it
    """

    kind: Literal["result", "raised", "timeout", "failed"]
    body: bytes = field(repr=False)

    @property
    def error(self) -> dict[str, Any]:
        """The JSON of what is no result."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @classmethod
    def failure(cls, code: str, message: str, output: str = "") -> Outcome:
        """`output`: what the replica wrote last, for whoever may see it."""
        record = {"type": code, "message": message, "traceback": output, "exception": None}
        return cls("failed", json.dumps(record).encode())


class Leases(Protocol):
    """`activator.Activator`."""

    def lease(
        self, match: Match, key: PoolKey, avoid: frozenset[ReplicaKey] = frozenset(), *, request_id: bytes = b""
    ) -> AbstractAsyncContextManager[Lease]:
        """Raises Reply."""


class Caller:
    """Makes calls. Cancelling one cancels what runs in the replica."""

    def __init__(self, leases: Leases, connect: Callable[[Address], Awaitable[Channel]]) -> None:
        self._leases = leases
        self._connect = connect
        self._under_way = 0
        self._ended = asyncio.Event()
        self._leaving = False
        self.outcomes: dict[str, int] = {}
        """Kind → calls that ended so, attempts not counted."""

    async def call(self, call: Call, on_retry: Callable[[Outcome, float], None] | None = None) -> Outcome:
        """To its end, with all retries. `on_retry` hears of a failed attempt and the seconds until the next."""
        if self._leaving:
            return Outcome.failure("draining", f"{call.name} is not called any more: the platform is stopping.")
        self._under_way += 1
        try:
            outcome = await self._tries(call, on_retry)
        finally:
            self._under_way -= 1
            self._ended.set()
        self.outcomes[outcome.kind] = self.outcomes.get(outcome.kind, 0) + 1
        return outcome

    async def drain(self, within: float) -> bool:
        """No new calls; wait for those under way. False: not all ended in that many seconds. Idempotent."""
        self._leaving = True
        try:
            async with asyncio.timeout(within):
                while self._under_way:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def _tries(self, call: Call, on_retry: Callable[[Outcome, float], None] | None) -> Outcome:
        retries, done = call.revision.function.retries, 0
        while True:
            outcome = await self._attempt(call)
            if outcome.kind == "result" or retries is None or done >= retries.max_retries or not _worth_it(outcome):
                return outcome
            delay = retries.delay(done)
            done += 1
            if on_retry is not None:
                on_retry(outcome, delay)
            await asyncio.sleep(delay)

    async def _attempt(self, call: Call) -> Outcome:
        match, key = _match(call.revision), PoolKey(call.revision.id, call.parameters)
        avoid: frozenset[ReplicaKey] = frozenset()
        missed = 0
        while missed < ATTEMPTS:
            try:
                async with self._leases.lease(match, key, avoid, request_id=call.id.encode()) as lease:
                    return await self._ask(call, lease)
            except _Elsewhere as miss:
                avoid |= {miss.key}
                missed += not miss.busy
            except Reply as reply:
                if reply.answer.code not in _PATIENT:
                    return _refused(call, reply.answer)
                logger.debug("%s waits for a place: %s", call.name, reply.answer.detail)
                await asyncio.sleep(min(reply.answer.retry_after or 1.0, LONGEST_PAUSE))
        return Outcome.failure("replica_gone", f"None of {ATTEMPTS} replicas tried took the call of {call.name}.")

    async def _ask(self, call: Call, lease: Lease) -> Outcome:
        """Raises _Elsewhere."""
        try:
            channel = await self._connect(lease.address)
        except NoSocket as error:
            raise outcomes.no_socket(error) from error
        except (ConnectionError, TimeoutError) as error:
            lease.gone(timed_out=isinstance(error, TimeoutError))
            raise _Elsewhere(lease.key) from error
        timeout = call.revision.function.timeout
        headers = (
            (contract.HEADER_TICKET.encode(), lease.ticket),
            (contract.HEADER_REQUEST_ID.encode(), call.id.encode()),
            (contract.HEADER_METHOD.encode(), call.method.encode()),
            (contract.HEADER_TELL.encode(), b"1" if call.tell else b"0"),
        )
        limit = contract.CALL_LIMIT + _HEADERS
        try:
            async with asyncio.timeout(timeout + MARGIN):
                status, fields, body = await ask(
                    channel, b"POST", contract.CALL_PATH.encode(), headers, body=call.payload, limit=limit
                )
        except TimeoutError:
            lease.gone()  # it may hang altogether
            failure = Outcome.failure(
                "FunctionTimeoutError", f"{call.name} ran longer than its timeout of {timeout:g} s"
            )
            return Outcome("timeout", failure.body)
        except ConnectionError as error:
            lease.gone()
            logger.debug("%s: %s", call.name, error)
            return Outcome.failure("replica_gone", f"The replica of {call.name} went away while the call ran.")
        return _read(call, lease, status, fields, body)


class _Elsewhere(Exception):
    """This replica did not take the call."""

    def __init__(self, key: ReplicaKey, *, busy: bool = False) -> None:
        super().__init__(str(key))
        self.key = key
        self.busy = busy


def _read(call: Call, lease: Lease, status: int, fields: Headers, body: bytes) -> Outcome:
    found = dict(fields)
    outcome = found.get(contract.HEADER_OUTCOME.encode(), b"").decode("latin-1")
    if status == 200 and outcome == "result":
        return Outcome("result", body)
    if status == 200 and outcome in {"raised", "timeout"}:
        return Outcome("timeout" if outcome == "timeout" else "raised", body)
    if status == 503 and contract.HEADER_BUSY.encode() in found:
        lease.refused()
        raise _Elsewhere(lease.key, busy=True)
    said = body[:200].decode("utf-8", "replace").strip()
    return Outcome.failure("refused", f"{call.name} cannot be called: its replica answered {status}: {said}")


def _refused(call: Call, answer: Answer) -> Outcome:
    """No replica could be had."""
    if answer.code == "unknown_endpoint":
        return Outcome.failure(answer.code, f"{call.name} is no longer served in this version.")
    private, _, output = answer.private.partition("\n")
    return Outcome.failure(answer.code, private or f"{call.name}: {answer.detail}", output)


def _worth_it(outcome: Outcome) -> bool:
    """Whether another attempt is what `retries` are for: not when no replica could be had at all."""
    return outcome.kind != "failed" or outcome.error["type"] == "replica_gone"


def _match(revision: Revision) -> Match:
    """Leases are for routes. This one leads nowhere: a call that waits for a revision that is retired has failed."""
    endpoint = Endpoint(name=revision.function.tag, kind="asgi_app")
    route = Route(
        hosts=(f"{revision.id}.call.invalid",),
        environment=revision.environment,
        app=revision.app,
        endpoint=endpoint,
        revision=revision.id,
    )
    return Match(route, revision)
