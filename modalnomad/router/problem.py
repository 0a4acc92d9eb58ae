"""The router's own answers as bytes: RFC 9457 problem details. Pure but for the date."""

from __future__ import annotations

import json
import math
import time
from email.utils import formatdate

from modalnomad.router.replies import TITLES, Answer


def render(answer: Answer, *, request_id: bytes, is_head: bool, private: bool, close: bool) -> bytes:
    """Head and body. `private`: the caller may see `answer.private` (a -dev route)."""
    title = TITLES.get(answer.status, "Error")
    content = {
        "type": f"urn:modalnomad:error:{answer.code}",
        "title": title,
        "status": answer.status,
        "detail": f"{answer.detail}\n{answer.private}" if private and answer.private else answer.detail,
        "request_id": request_id.decode("ascii"),
        "code": answer.code,
    }
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    lines = [
        b"HTTP/1.1 %d %b" % (answer.status, title.encode()),
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"date: " + formatdate(time.time(), usegmt=True).encode(),
        b"cache-control: no-store",
        b"x-request-id: " + request_id,
        b"modalnomad-error: " + answer.code.encode(),
        *(b"%b: %b" % field for field in answer.headers),
    ]
    if answer.retry_after is not None:
        lines.append(b"retry-after: %d" % max(1, math.ceil(answer.retry_after)))
    if close:
        lines.append(b"connection: close")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return head if is_head else head + body
