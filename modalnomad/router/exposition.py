"""The counts of a router as Prometheus metrics (text format 0.0.4, and OpenMetrics 1.0 where it is asked for).

`Exposition.read` runs on the event loop and only copies numbers; making text of them is left to a thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from modalnomad import __version__
from modalnomad.kit.clock import Clock, monotonic
from modalnomad.router import metrics
from modalnomad.router.metrics import Described
from modalnomad.router.phase import State
from modalnomad.router.places import PlaceState
from modalnomad.router.server import RouterServer
from modalnomad.router.telemetry import SECONDS, Histogram, Life, Meter

_BOUNDS: Final = (*(f"{bound:g}" if bound < 1 else f"{bound:.1f}" for bound in SECONDS), "+Inf")
_STATUSES: Final = ("none", "1xx", "2xx", "3xx", "4xx", "5xx", "6xx", "7xx", "8xx", "9xx")

Labels = tuple[str, ...]
Counts = dict[Described, Counter[Labels]]


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers of one scrape: nobody changes them any more."""

    meters: tuple[Meter, ...]
    lives: tuple[Life, ...]
    pools: Counts
    rest: list[Metric]


class _Family:
    """One metric on its way out."""

    def __init__(self, described: Described) -> None:
        kind = described.kind
        name = described.name.removesuffix("_total") if kind == "counter" else described.name
        self._suffix = "_total" if kind == "counter" else ""
        self._labels = described.labels
        self.metric = Metric(name, described.help, kind)

    def add(self, labels: Labels, value: float) -> None:
        """One number."""
        self.metric.add_sample(self.metric.name + self._suffix, dict(zip(self._labels, labels, strict=True)), value)

    def add_all(self, labels: Labels, values: Mapping[str, int]) -> None:
        """One number for each value of the last label."""
        for last, value in values.items():
            self.add((*labels, last), value)

    def add_histogram(self, labels: Labels, histogram: Histogram) -> None:
        """Nothing, while it is empty."""
        named = dict(zip(self._labels, labels, strict=True))
        total = 0
        if not histogram.count:
            return
        for bound, count in zip(_BOUNDS, histogram.counts, strict=True):
            total += count
            self.metric.add_sample(f"{self.metric.name}_bucket", {**named, "le": bound}, total)
        self.metric.add_sample(f"{self.metric.name}_count", named, total)
        self.metric.add_sample(f"{self.metric.name}_sum", named, histogram.sum)


class Exposition:
    """`lost_lines`: lines of replicas' output that could not be kept; None: nobody keeps them."""

    def __init__(
        self, router: RouterServer, *, lost_lines: Callable[[], int] | None = None, clock: Clock = monotonic
    ) -> None:
        self._router = router
        self.lost_lines = lost_lines
        self._clock = clock
        self._started = time.time()
        self._process = ProcessCollector(registry=None)

    def read(self) -> Reading:
        """All numbers, at this moment. On the event loop, so no more than copying."""
        counters, observer = self._router.counters, self._router.activator.observer
        return Reading(
            meters=tuple(meter.copy() for meter in (*counters.meters, counters.nowhere)),
            lives=tuple(life.copy() for life in observer.lives()),
            pools=self._pools(),
            rest=[family.metric for family in (*self._requests(), *self._platform())],
        )

    def render(self, reading: Reading, accept: str) -> tuple[bytes, str]:
        """Text and its content type. May run in another thread; adds the numbers of this process."""
        encode, content_type = choose_encoder(accept)
        found = [*_of_meters(reading.meters), *_of_pools(reading.pools), *_of_lives(reading.lives)]
        return encode(
            _Read([*(family.metric for family in found), *reading.rest, *self._process.collect()])
        ), content_type

    def _requests(self) -> Iterator[_Family]:
        counters = self._router.counters
        yield _one(metrics.IN_FLIGHT, counters.running)
        retries = _Family(metrics.RETRIES)
        retries.add_all((), counters.retries)
        yield retries
        yield _one(metrics.CONNECTIONS, counters.connections)
        yield _one(metrics.ACCEPTED, counters.accepted)
        yield _one(metrics.WEBSOCKETS, counters.websockets)
        total, idle = self._router.connections
        channels = _Family(metrics.CHANNELS)
        channels.add_all((), {"used": total - idle, "idle": idle})
        yield channels
        yield _one(metrics.CONNECTS, counters.connects)

    def _pools(self) -> Counts:
        observer, now = self._router.activator.observer, self._clock()
        counts: Counts = {
            described: Counter()
            for described in (metrics.WAITING, metrics.RUNNING, metrics.REPLICAS, metrics.POOLS, metrics.BREAKERS)
        }
        for life in observer.lives():
            name = (life.environment, life.app, life.function)
            for described in (metrics.WAITING, metrics.RUNNING, metrics.BREAKERS):
                counts[described][name] = 0
            for place_state in PlaceState:
                counts[metrics.REPLICAS][*name, place_state.value] = 0
            for state in State:
                counts[metrics.POOLS][*name, state.value] = 0
        for pool in self._router.activator.pools():
            found = observer.life(pool.key.revision)
            if found is None:
                continue
            name = (found.environment, found.app, found.function)
            counts[metrics.WAITING][name] += len(pool.tickets)
            counts[metrics.RUNNING][name] += pool.running
            counts[metrics.BREAKERS][name] += not pool.starts_allowed.open(now)
            counts[metrics.POOLS][*name, pool.state.value] += 1
            for place in pool.places:
                counts[metrics.REPLICAS][*name, place.state.value] += 1
        return counts

    def _platform(self) -> Iterator[_Family]:
        router, counters = self._router, self._router.counters
        yield _one(metrics.READY, not router.unready)
        stale = _Family(metrics.STALE)
        for source, since in router.stale().items():
            stale.add((source,), max(0.0, time.time() - since))
        yield stale
        yield _one(metrics.ROUTES, len(router.router.table.hosts()))
        yield _one(metrics.FLIPS, counters.flips)
        flip_time = _Family(metrics.FLIP_TIME)
        flip_time.add_histogram((), counters.flip_time)
        yield flip_time
        yield _one(metrics.FLIPPED_AT, counters.flipped_at)
        failures = _Family(metrics.LOOP_FAILURES)
        failures.add_all((), {"routes": 0, "replicas": 0, "scaler": 0} | counters.failures)
        yield failures
        yield _one(metrics.LAG, counters.lag)
        if (log := router.access_log) is not None:
            yield _one(metrics.LOG_LINES, log.written)
            yield _one(metrics.LOG_DROPPED, log.dropped)
        if self.lost_lines is not None:
            yield _one(metrics.OUTPUT_LOST, self.lost_lines())
        build = _Family(metrics.BUILD)
        build.add((__version__,), 1)
        yield build
        yield _one(metrics.STARTED, self._started)


class _Read:
    """What an encoder calls a registry."""

    def __init__(self, read: list[Metric]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        return self._read


def _one(described: Described, value: float) -> _Family:
    family = _Family(described)
    family.add((), value)
    return family


def _of_pools(counts: Counts) -> Iterator[_Family]:
    for described, values in counts.items():
        family = _Family(described)
        for labels, value in values.items():
            family.add(labels, value)
        yield family


def _of_meters(meters: Iterable[Meter]) -> list[_Family]:
    families = [
        _Family(described)
        for described in (
            metrics.REQUESTS, metrics.ANSWERS, metrics.DURATION, metrics.FIRST_BYTE, metrics.WAIT,
            metrics.BYTES_IN, metrics.BYTES_OUT,
        )
    ]  # fmt: skip
    for meter in meters:
        _read_meter(meter, families)
    return families


def _of_lives(lives: Iterable[Life]) -> list[_Family]:
    families = [
        _Family(described)
        for described in (
            metrics.STARTS, metrics.START_FAILURES, metrics.START_TIME, metrics.WAKES, metrics.DRAINS,
            metrics.KILLS, metrics.DEATHS,
        )
    ]  # fmt: skip
    for life in lives:
        _read_life(life, families)
    return families


def _read_meter(meter: Meter, families: list[_Family]) -> None:
    name = (meter.environment, meter.app, meter.function, meter.endpoint)
    requests, answers, duration, first_byte, waited, bytes_in, bytes_out = families
    for status, count in zip(_STATUSES, meter.statuses, strict=True):
        if count:
            requests.add((*name, status), count)
    answers.add_all(name, meter.replies)
    duration.add_histogram(name, meter.duration)
    first_byte.add_histogram(name, meter.first_byte)
    waited.add_histogram(name, meter.waited)
    if meter.endpoint:
        bytes_in.add(name, meter.bytes_in)
        bytes_out.add(name, meter.bytes_out)


def _read_life(life: Life, families: list[_Family]) -> None:
    name = (life.environment, life.app, life.function)
    starts, failures, start_time, wakes, drains, kills, deaths = families
    starts.add_all(name, life.starts)
    failures.add_all(name, life.start_failures)
    start_time.add_histogram(name, life.start_time)
    for outcome, histogram in life.wakes.items():
        wakes.add_histogram((*name, outcome), histogram)
    drains.add_all(name, life.drains)
    kills.add_all(name, life.kills)
    deaths.add(name, life.deaths)
