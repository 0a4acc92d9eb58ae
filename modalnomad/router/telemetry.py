"""What a router counts: plain numbers, read by whoever wants to show them. Pure.

A request costs a few additions here, once, when it is over; what makes them readable is done by the reader.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Self

SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)
"""Upper ends of the buckets of every histogram."""
FORGET_AFTER: Final = 3600.0
"""Seconds after which what was counted for an endpoint or Function that is no longer served is forgotten."""


class Histogram:
    """How often a value fell between two of `SECONDS`, and the sum of all."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        """One more than SECONDS: the last is for what is above all of them. Not cumulative."""
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """One more value."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def copy(self) -> Self:
        """As it is now."""
        copy = type(self)()
        copy.counts, copy.sum = self.counts.copy(), self.sum
        return copy

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)


@dataclass(slots=True, eq=False)
class Meter:
    """What the requests for one endpoint came to; one more is for requests that led to none."""

    environment: str = ""
    app: str = ""
    function: str = ""
    endpoint: str = ""
    statuses: list[int] = field(default_factory=lambda: [0] * 10)
    """Answers by status class (2 for 200 to 299). 0: the client left, or was cut off, before any."""
    replies: dict[str, int] = field(default_factory=dict)
    """Error code → the router's own answers."""
    bytes_in: int = 0
    """Of request bodies and, of WebSockets, what the client sent."""
    bytes_out: int = 0
    """The other way."""
    duration: Histogram = field(default_factory=Histogram)
    """Head read → last byte written; no WebSockets."""
    first_byte: Histogram = field(default_factory=Histogram)
    """Head read → the replica's answer begins."""
    waited: Histogram = field(default_factory=Histogram)
    """Head read → a place in a replica; the last one, when several were tried."""
    gone_at: float | None = None
    """When it ceased to be served; None: it is."""

    def copy(self) -> Self:
        """As it is now."""
        return replace(
            self,
            statuses=self.statuses.copy(),
            replies=self.replies.copy(),
            duration=self.duration.copy(),
            first_byte=self.first_byte.copy(),
            waited=self.waited.copy(),
        )


@dataclass(slots=True, eq=False)
class Life:
    """What the replicas of one Function, of all its revisions and pools, went through."""

    environment: str
    app: str
    function: str
    starts: dict[str, int] = field(default_factory=dict)
    """Kind of reason → replicas asked for."""
    start_failures: dict[str, int] = field(default_factory=dict)
    """Failure code → starts that came to nothing."""
    start_time: Histogram = field(default_factory=Histogram)
    """Of starts that succeeded: asked for → ready."""
    wakes: dict[str, Histogram] = field(default_factory=dict)
    """Outcome (`ready`, `abandoned`, a failure code) → from no replica to that."""
    deaths: int = 0
    """Replicas that ended by themselves after they were ready."""
    drains: dict[str, int] = field(default_factory=dict)
    """Kind of reason → replicas asked to go."""
    kills: dict[str, int] = field(default_factory=dict)
    """Kind of reason → replicas ended at once, some of which had been asked to go."""
    gone_at: float = 0.0
    """When the last revision of it was forgotten."""

    def copy(self) -> Self:
        """As it is now."""
        return replace(
            self,
            starts=self.starts.copy(),
            start_failures=self.start_failures.copy(),
            start_time=self.start_time.copy(),
            wakes={outcome: histogram.copy() for outcome, histogram in self.wakes.items()},
            drains=self.drains.copy(),
            kills=self.kills.copy(),
        )


class Meters:
    """One Meter for each endpoint, as long as it is served and an hour more."""

    def __init__(self) -> None:
        self._meters: dict[tuple[str, str, str, str], Meter] = {}

    def __iter__(self) -> Iterator[Meter]:
        return iter(tuple(self._meters.values()))

    def of(self, environment: str, app: str, function: str, endpoint: str) -> Meter:
        """The same one each time."""
        name = (environment, app, function, endpoint)
        meter = self._meters.get(name)
        if meter is None:
            meter = self._meters[name] = Meter(*name)
        meter.gone_at = None
        return meter

    def keep(self, served: Collection[Meter], now: float) -> None:
        """No others are served any more."""
        kept = set(map(id, served))
        for name, meter in tuple(self._meters.items()):
            if id(meter) in kept:
                continue
            if meter.gone_at is None:
                meter.gone_at = now
            elif now - meter.gone_at >= FORGET_AFTER:
                del self._meters[name]


@dataclass(slots=True)
class Counters:
    """All but `connections`, `running` and `websockets` only ever rise."""

    connections: int = 0
    running: int = 0
    """Requests being handled, waiting ones included."""
    websockets: int = 0
    requests: int = 0
    """That are over, and what came and was none but was answered."""
    accepted: int = 0
    """Connections of clients."""
    retries: dict[str, int] = field(default_factory=dict)
    """Reason (`busy`, `gone`, `stale`) → requests tried elsewhere."""
    connects: int = 0
    """Connections opened to replicas."""
    failures: dict[str, int] = field(default_factory=dict)
    """Background loop (`routes`, `replicas`, `scaler`) → how often one round of it failed."""
    flips: int = 0
    """Route tables taken into use."""
    flip_time: Histogram = field(default_factory=Histogram)
    """From a new snapshot to requests being led by it."""
    flipped_at: float = 0.0
    """Unix time of the last one."""
    lag: float = 0.0
    """Seconds by which the event loop was late when it was last looked at."""
    meters: Meters = field(default_factory=Meters)
    """Of requests that led to an endpoint."""
    nowhere: Meter = field(default_factory=Meter)
    """Of requests that led to no endpoint."""

    def retried(self, reason: str) -> None:
        """A request goes to another replica, or over a fresh connection."""
        self.retries[reason] = self.retries.get(reason, 0) + 1

    def flipped(self, seconds: float, now: float) -> None:
        """A new route table is in use. `now`: Unix time."""
        self.flips += 1
        self.flip_time.add(seconds)
        self.flipped_at = now

    def failed(self, loop: str) -> None:
        """A round of a background loop did, which goes on all the same."""
        self.failures[loop] = self.failures.get(loop, 0) + 1
