"""What a router counts: plain numbers, read by whoever wants to show them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """All but `connections`, `running` and `websockets` only ever rise."""

    connections: int = 0
    running: int = 0
    """Requests being handled, waiting ones included."""
    websockets: int = 0
    requests: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    """Status class (2 for 200 to 299) → answers. 0: the client left, or was cut off, before any."""
    replies: dict[str, int] = field(default_factory=dict)
    """Error code → the router's own answers."""
    retries: dict[str, int] = field(default_factory=dict)
    """Reason (`busy`, `gone`, `stale`) → requests tried elsewhere."""
    connects: int = 0
    """Connections opened to replicas."""

    def answered(self, status: int) -> None:
        """One request ended."""
        self.requests += 1
        self.statuses[status // 100] = self.statuses.get(status // 100, 0) + 1

    def replied(self, code: str) -> None:
        """The router answered by itself."""
        self.replies[code] = self.replies.get(code, 0) + 1

    def retried(self, reason: str) -> None:
        """A request goes to another replica, or over a fresh connection."""
        self.retries[reason] = self.retries.get(reason, 0) + 1
