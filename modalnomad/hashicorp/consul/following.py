"""Following what Consul says by blocking queries, and telling an answer that may be believed from one that may not.

Rules of Consul (https://developer.hashicorp.com/consul/api-docs/features/blocking): the index is at least 1, begins
anew when it goes backwards, and a query may return without a change. Ours: no answer empties what is known unless
Consul's leader says it at a later index.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

from modalnomad.hashicorp.consul.api import LONGEST_WAIT, Found
from modalnomad.model.errors import BackendError

logger = logging.getLogger("modalnomad.consul")

PACE: Final = 0.05
"""Seconds between an answer and the next question: what changes faster is seen together."""
BACKOFF: Final = 0.25
"""Upper end of the first pause after a failure, seconds; doubled by each further one. The pause is drawn from all of
it, so that many routers do not come back at once."""
BACKOFF_MAX: Final = 5.0

T = TypeVar("T")


class Ask(Protocol[T]):
    """A read of Consul's. `index` 0: answer at once."""

    async def __call__(self, *, index: int, wait: float, consistent: bool) -> Found[T]:
        """Raises BackendError."""


class Verdict(Enum):
    """What to do with an answer."""

    TAKE = "take"
    CONFIRM = "confirm"
    """Ask the leader; if it says the same, take it."""
    DOUBT = "doubt"
    """It cannot follow what is known; nor does what is known stop being served."""


def judge(last: Found[Any] | None, new: Found[Any]) -> tuple[Verdict, str]:
    """May `new` replace `last`? The second is why not."""
    if new.filtered:
        return Verdict.DOUBT, "its token may not read all of it"
    if last is None or new.items == last.items:
        # Equal items at a lower index are Consul's own doing: it forgets removals after a while.
        return Verdict.TAKE, ""
    if new.index < last.index:
        return Verdict.DOUBT, f"its index went backwards, from {last.index} to {new.index}"
    if new.items:
        return Verdict.TAKE, ""
    if new.index == last.index:
        return Verdict.DOUBT, f"it says there is nothing at index {new.index}, where there was something"
    return Verdict.CONFIRM, "it says there is nothing any longer"


def pause_after(failures: int) -> float:
    """Seconds to wait after the nth failure in a row: full jitter."""
    return random.random() * min(BACKOFF_MAX, BACKOFF * 2.0 ** min(failures - 1, 16))


class Follower(Generic[T]):
    """Follows one read. `what`: for messages. `known`: what was seen last, by whomever.

    An answer whose index went backwards is taken after `reconcile` seconds in which the leader says nothing else (its
    servers were restored from a copy); when it has nothing in it, only with `may_empty`.
    """

    def __init__(
        self,
        what: str,
        ask: Ask[T],
        *,
        reconcile: float,
        known: Found[T] | None = None,
        may_empty: bool = False,
        on_doubt: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._what = what
        self._ask = ask
        self._reconcile = reconcile
        self._known = known
        self._may_empty = may_empty
        self._on_doubt = on_doubt
        """Called with the reason each time an answer fails or is not believed."""
        self._failures = 0
        self._doubted_since: float | None = None
        """Monotonic; of answers that came, but are not believed."""

    async def answers(self) -> AsyncIterator[Found[T]]:
        """Each answer that is believed, whether anything changed or not. Until closed."""
        index, read_at = 0, time.monotonic()
        while True:
            due = read_at + self._reconcile - time.monotonic()
            if due <= 0 or self._failures:
                index = 0
            try:
                asked = time.monotonic()
                found = await self._ask(index=index, wait=min(LONGEST_WAIT, max(due, 1.0)), consistent=self._doubting)
                refusal = await self._refusal(found)
            except BackendError as error:
                self._doubted_since = None
                await self._failed(error.message)
                continue
            if refusal:
                await self._failed(refusal)
                continue
            read_at = asked if index == 0 else read_at
            self._fine()
            self._known, index = found, found.index
            yield found
            await asyncio.sleep(PACE)

    @property
    def _doubting(self) -> bool:
        return self._doubted_since is not None

    async def _refusal(self, found: Found[T]) -> str:
        """Why it is not taken; empty: it is."""
        verdict, reason = judge(self._known, found)
        if verdict is Verdict.CONFIRM:
            again = await self._ask(index=0, wait=0.0, consistent=True)
            if not again.items and not again.filtered and again.index >= found.index:
                return ""
            verdict, reason = Verdict.DOUBT, judge(self._known, again)[1] or reason
        if verdict is Verdict.TAKE:
            return ""
        now = time.monotonic()
        self._doubted_since = now if self._doubted_since is None else self._doubted_since
        restored = now >= self._doubted_since + self._reconcile and not found.filtered
        if restored and (found.items or self._may_empty):
            logger.warning("%s: Consul goes on saying so (%s); it is believed now", self._what, reason)
            return ""
        return reason

    async def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.error("%s: %s; what was last seen stays in force", self._what, reason)
        self._on_doubt(reason)
        await asyncio.sleep(pause_after(self._failures))

    def _fine(self) -> None:
        if self._failures:
            logger.warning("%s: Consul answers again", self._what)
        self._failures, self._doubted_since = 0, None
