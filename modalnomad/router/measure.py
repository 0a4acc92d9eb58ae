"""What one request that is over adds to the counts. Pure; on the path of every request, so as little as can be."""

from __future__ import annotations

from modalnomad.router.replies import Answer
from modalnomad.router.request import Exchange
from modalnomad.router.telemetry import Counters


def count(exchange: Exchange, now: float, counters: Counters) -> None:
    """Into its endpoint's meter, and into the total."""
    meter = exchange.meter or counters.nowhere
    status, code = exchange.status, exchange.code
    counters.requests += 1
    meter.statuses[status // 100] += 1
    if code:
        meter.replies[code] = meter.replies.get(code, 0) + 1
    meter.bytes_in += exchange.received
    meter.bytes_out += exchange.sent
    arrived_at = exchange.arrived_at
    if exchange.leased_at:
        meter.waited.add(exchange.leased_at - arrived_at)
    if exchange.answered_at:
        meter.first_byte.add(exchange.answered_at - arrived_at)
    if status != 101:
        meter.duration.add(now - arrived_at)


def count_refusal(answer: Answer, counters: Counters) -> None:
    """What came was no request, and was answered all the same."""
    meter = counters.nowhere
    counters.requests += 1
    meter.statuses[answer.status // 100] += 1
    meter.replies[answer.code] = meter.replies.get(answer.code, 0) + 1
