"""Every answer the router makes itself, as exceptions carrying a status and a code (design §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    422: "Unprocessable Content",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the router's own. `detail` is safe to show anybody; `private` only on -dev routes."""

    status: int
    code: str
    detail: str
    private: str = ""
    retry_after: float | None = None
    """Seconds; rounded up into Retry-After."""
    close: bool = False
    """Close the connection after it."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """More header fields it must carry, such as WWW-Authenticate beside 401 (RFC 9110, 15.5.2)."""


class Reply(Exception):
    """Raised by a step of `handle` to end the request with the router's own answer."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        private: str = "",
        retry_after: float | None = None,
        close: bool = False,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.answer = Answer(status, code, detail, private, retry_after, close, headers)
