"""What the runner answers by itself, for the gate (ASGI) and the relay (bytes) alike."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from urllib.parse import parse_qsl

from modalnomad_sdk.contract import DRAIN_PATH, HEADER_BUSY, HEADER_REPLICA, READY_PATH

from .doors import Doors

_REASONS = {200: b"OK", 202: b"Accepted", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found", 409: b"Conflict"}


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"text/plain; charset=utf-8"

    def all_headers(self, close: bool) -> list[tuple[bytes, bytes]]:
        """With its length and type."""
        headers = [(b"content-type", self.content_type), (b"content-length", str(len(self.body)).encode())]
        if close:
            headers.append((b"connection", b"close"))
        return [*headers, *self.headers]

    def last(self) -> bytes:
        """As written on a connection that ends with it."""
        lines = [b"HTTP/1.1 %d %s" % (self.status, _REASONS.get(self.status, b"Service Unavailable"))]
        lines += [name + b": " + value for name, value in self.all_headers(close=True)]
        return b"\r\n".join([*lines, b"", self.body])


FORBIDDEN = Answer(403, b"This replica is reached through its router only.\n")
BUSY = Answer(503, b"No place is free.\n", ((HEADER_BUSY.encode(), b"1"),))
NO_ENDPOINT = Answer(404, b"The replica serves no such endpoint.\n")


class Porter:
    """Knows the ticket and answers what is asked under PREFIX."""

    def __init__(self, ticket_sha256: str, name: str, doors: Doors) -> None:
        self._hash = ticket_sha256.encode()
        self._name = ((HEADER_REPLICA.encode(), name.encode()),)
        self._doors = doors
        self._known = b""

    def admits(self, ticket: bytes) -> bool:
        """Is it the ticket of this revision? Compared in constant time."""
        return hmac.compare_digest(hashlib.sha256(ticket).hexdigest().encode(), self._hash)

    def stranger(self, ticket: bytes, method: str, path: str) -> Answer:
        """The answer to a request without the right ticket. Health checks have none; a wrong one is a router's that
        takes this replica for another."""
        if not ticket and path == READY_PATH and method in ("GET", "HEAD"):
            if self._doors.draining:
                return Answer(503, b"draining\n", self._name)
            return Answer(200, b"ready\n", self._name)
        return FORBIDDEN

    def private(self, method: str, path: str, query: bytes) -> Answer:
        """The answer to a request under PREFIX that carried the ticket."""
        if path == READY_PATH and method in ("GET", "HEAD"):
            return Answer(200, b"ready\n", self._name)
        if path == DRAIN_PATH and method == "POST":
            return self._drain(query)
        return Answer(404, b"The runner has no such path.\n", self._name)

    def _drain(self, query: bytes) -> Answer:
        asked = dict(parse_qsl(query.decode("latin-1")))
        if asked.get("force") == "1":
            self._doors.shut()
        try:
            idle_for = float(asked.get("idle_for", "0"))
        except ValueError:
            idle_for = -1.0
        if not idle_for >= 0:  # also what is not a number
            return Answer(400, b"idle_for is a number of seconds.\n", self._name)
        if self._doors.drain(idle_for):
            return Answer(202, b"{}", self._name, b"application/json")
        found = {"running": self._doors.running, "idle_for": round(self._doors.idle_for(), 3)}
        return Answer(409, json.dumps(found).encode(), self._name, b"application/json")
