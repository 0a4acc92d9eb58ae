"""What a line of the access log says. Pure.

One template, and what is alike on many lines is made once: `json.dumps` of a dictionary would cost three times as much
for every request.
"""

from __future__ import annotations

import time
from json.encoder import encode_basestring_ascii as quoted
from typing import Final

from modalnomad.model.replica import ReplicaKey
from modalnomad.router.telemetry import Meter

Record = tuple[
    float, float, float, float, float, bytes,
    bytes, str, bytes, int, str, Meter | None,
    ReplicaKey | None, str, int, int, bytes, bool,
]  # fmt: skip
"""Unix time at the end; end, arrival, lease and first byte on the router's clock (0: there was none); request id;
method, host, target, status, error code, meter; replica, client, bytes in, bytes out, User-Agent, whether it was
answered to its end."""

FIELDS: Final[tuple[tuple[str, str, str], ...]] = (
    ("event", "request", "always that: beside the events of `--json` on standard output a line shows what it is"),
    ("time", "2026-01-31T12:00:00.123Z", "when the request's head had come, UTC"),
    ("request_id", "3f…", "`X-Request-Id`; as in the replica's own log lines"),
    ("method", "GET", "empty: what came was no request"),
    ("host", "shop-site.example.org", "which endpoint was meant, without port"),
    ("path", "/orders/7", "without the query, which may hold secrets; 2,048 bytes at most"),
    ("status", "200", "101: a WebSocket; 0: the client left, or was cut off, before an answer"),
    ("code", "null", "of the router's own answer, as in `Modalnomad-Error`; null: the replica answered"),
    ("complete", "true", "false: the answer was broken off"),
    ("environment", "main", "null, as the next three: the request led to no endpoint"),
    ("app", "shop", ""),
    ("function", "site", ""),
    ("endpoint", "site", ""),
    ("replica", "…0.1", "the last one it was offered to: pool, number, epoch; null: none"),
    ("client", "203.0.113.7", "address of the client; behind one of `router.trusted_proxies`, the one it names"),
    ("bytes_in", "0", "of the request's body; of a WebSocket, all that the client sent"),
    ("bytes_out", "512", "the other way"),
    ("waited", "0.000210", "seconds until it got its place in a replica; null: it got none"),
    ("first_byte", "0.004100", "seconds until the replica's answer began; null: it did not"),
    ("duration", "0.004300", "seconds until all was written; streams and WebSockets are logged when they end"),
    ("user_agent", "curl/8.5.0", "256 bytes at most"),
)
"""Name, an example, meaning; in this order."""

_NOWHERE: Final = '"environment":null,"app":null,"function":null,"endpoint":null,"replica":null'
_MILLIS: Final = tuple(f"{number:03d}" for number in range(1001))
_REMEMBERED: Final = 1000
"""Addresses, and User-Agents, whose form on a line is kept for the next one."""


class Lines:
    """Remembers what one line has in common with others."""

    def __init__(self) -> None:
        self._second = -1
        self._clock = ""
        self._places: dict[tuple[int, int], tuple[Meter, ReplicaKey | None, str]] = {}
        self._texts: dict[str | bytes, str] = {b"": "null"}

    def line(self, record: Record) -> str:
        """With its newline."""
        (
            wall, ended, arrived, leased, answered, request_id,
            method, host, target, status, code, meter,
            replica, client, received, sent, agent, finished,
        ) = record  # fmt: skip
        texts = self._texts
        duration = ended - arrived
        began = wall - duration
        second = int(began)
        if second != self._second:
            self._second = second
            self._clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        where = _NOWHERE if meter is None else self._place(meter, replica)
        waited = f"{leased - arrived:.6f}" if leased else "null"
        first_byte = f"{answered - arrived:.6f}" if answered else "null"
        return (
            f'{{"event":"request","time":"{self._clock}.{_MILLIS[int((began - second) * 1000)]}Z",'
            f'"request_id":"{request_id.decode()}","method":"{method.decode()}",'
            f'"host":{texts.get(host) or self._text(host)},"path":"{path(target)}","status":{status},'
            f'"code":{_code(code) if code else "null"},"complete":{"true" if finished else "false"},{where},'
            f'"client":{texts.get(client) or self._text(client)},"bytes_in":{received},"bytes_out":{sent},'
            f'"waited":{waited},"first_byte":{first_byte},"duration":{duration:.6f},'
            f'"user_agent":{texts.get(agent) or self._text(agent)}}}\n'
        )

    def _text(self, value: str | bytes) -> str:
        """Quoted."""
        if len(self._texts) >= _REMEMBERED:
            self._texts = {b"": "null"}
        text = self._texts[value] = quoted(value if isinstance(value, str) else value.decode("latin-1"))
        return text

    def _place(self, meter: Meter, replica: ReplicaKey | None) -> str:
        """Endpoint and replica, as they stand on a line."""
        key = (id(meter), id(replica))  # both are held below, so that no other object gets their number
        known = self._places.get(key)
        if known is not None:
            return known[2]
        if len(self._places) >= _REMEMBERED:
            self._places.clear()
        names = ("environment", "app", "function", "endpoint")
        fields = [f'"{name}":{quoted(getattr(meter, name))}' for name in names]
        fields.append('"replica":' + ("null" if replica is None else quoted(str(replica))))
        text = ",".join(fields)
        self._places[key] = (meter, replica, text)
        return text


def _code(code: str) -> str:
    return f'"{code}"'


def path(target: bytes) -> str:
    """Without query, ready to stand between quotes: a target has visible ASCII characters only."""
    text = target.partition(b"?")[0].decode()
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return text
