"""What a line of the access log says. Pure.

One formatting of one template: `json.dumps` of a dictionary would cost three times as much for every request.
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

_LINE: Final = (
    '{"event":"request","time":"%s.%03dZ","request_id":"%s","method":"%s","host":%s,"path":"%s","status":%d,"code":%s,'
    '"complete":%s,%s,"replica":%s,"client":%s,"bytes_in":%d,"bytes_out":%d,"waited":%s,"first_byte":%s,'
    '"duration":%.6f,"user_agent":%s}\n'
)
_NOWHERE: Final = '"environment":null,"app":null,"function":null,"endpoint":null'


class Lines:
    """Remembers what one line has in common with the next."""

    def __init__(self) -> None:
        self._second = -1
        self._clock = ""
        self._places: dict[int, tuple[Meter, str]] = {}
        self._replica: tuple[ReplicaKey | None, str] = (None, "null")

    def line(self, record: Record) -> str:
        """With its newline."""
        (
            wall, ended, arrived, leased, answered, request_id,
            method, host, target, status, code, meter,
            replica, client, received, sent, agent, finished,
        ) = record  # fmt: skip
        duration = ended - arrived
        began = wall - duration
        second = int(began)
        if second != self._second:
            self._second = second
            self._clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if replica is not self._replica[0]:
            self._replica = (replica, "null" if replica is None else quoted(str(replica)))
        return _LINE % (
            self._clock,
            int((began - second) * 1000),
            request_id.decode("ascii"),
            method.decode("ascii"),
            quoted(host),
            path(target),
            status,
            f'"{code}"' if code else "null",
            "true" if finished else "false",
            _NOWHERE if meter is None else self._place(meter),
            self._replica[1],
            quoted(client),
            received,
            sent,
            "%.6f" % (leased - arrived) if leased else "null",
            "%.6f" % (answered - arrived) if answered else "null",
            duration,
            quoted(agent.decode("latin-1")) if agent else "null",
        )

    def _place(self, meter: Meter) -> str:
        known = self._places.get(id(meter))
        if known is not None and known[0] is meter:
            return known[1]
        if len(self._places) >= 10_000:
            self._places.clear()
        names = ("environment", "app", "function", "endpoint")
        text = ",".join(f'"{name}":{quoted(getattr(meter, name))}' for name in names)
        self._places[id(meter)] = (meter, text)
        return text


def path(target: bytes) -> str:
    """Without query, ready to stand between quotes: a target has visible ASCII characters only."""
    text = target.partition(b"?")[0].decode("ascii")
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return text
