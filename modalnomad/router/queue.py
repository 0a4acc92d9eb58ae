"""Who waits for a place in one pool, first come first. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from modalnomad.router.places import Deny, Effect, Ticket


class Queue(OrderedDict[int, Ticket]):
    """Tickets by id; at most `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    @property
    def full(self) -> bool:
        """The next one is refused."""
        return len(self) >= self._limit

    @property
    def latest(self) -> str:
        """Request id of who came last, who is why more is needed; empty: nobody waits."""
        return self[next(reversed(self))].request_id if self else ""

    def deny(self, answer: Deny) -> list[Effect]:
        """Send everybody away with this answer."""
        denied: list[Effect] = [replace(answer, ticket=ticket) for ticket in self]
        self.clear()
        return denied

    def expire(self, now: float, grace: float) -> list[Effect]:
        """Send away who has waited for `grace` seconds longer than it meant to."""
        late = [ticket for ticket in self.values() if ticket.deadline + grace <= now]
        for ticket in late:
            del self[ticket.id]
        return [Deny(ticket.id, "queue_timeout", retry_after=1.0) for ticket in late]
