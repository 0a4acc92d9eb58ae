"""The reference page of what the router answers by itself."""

from __future__ import annotations

from modalnomad.router.codes import CODES

BEFORE = """# What the router answers by itself

Such an answer has the header `Modalnomad-Error: <code>` and a body of `application/problem+json` (RFC 9457):

```json
{"type": "urn:modalnomad:error:queue_full", "title": "Too Many Requests", "status": 429,
 "detail": "Too many requests wait for this endpoint.", "request_id": "3f2c…", "code": "queue_full"}
```

An answer without that header comes from the program, whatever its status is. With the `request_id` (the header
`X-Request-Id` of every answer) `modalnomad app logs APP --request-id ID` shows what was written meanwhile. Why a
program failed stands in the answer only under `modalnomad serve`; of what is deployed it stands in the logs.

The steps are taken in this order: host name, head, token, rate, class parameters, a place in a replica, the replica's
answer. Who has no token never starts a replica. Where the table says so, `Retry-After` tells in how many seconds to try
again.
"""

AFTER = """
When a part of the answer has been passed on already, none of these can be said any more: the connection is cut, so
that a broken answer never looks complete.

## Can a request run twice?

| method | |
|---|---|
| POST, PATCH and all that are not named below | never |
| GET, HEAD, OPTIONS, PUT, DELETE | yes, once more: HTTP has them mean the same when they come twice (RFC 9110, 9.2.2) |

Any request goes to another replica where nothing of it was written to the one before, or where that one refused it
unread. Without a body, a request of the second row also goes there where the way in which the connection ended tells
that nobody read it: then it did not run. But the router keeps connections to replicas, and where a kept one ends with
a request on it and without an answer, nobody can tell whether the replica ran it, or had closed the connection just
before. Such a request is sent once more, on a new connection, unless more than 64 KiB of its body were passed on
already. A request that ends every replica it comes to ends two of them at most, and is then answered 502
`replica_gone`. What must not run twice should be a POST.

## WebSockets

A handshake is answered like any request. Later a WebSocket ends with a close code:

| code | when |
|---|---|
| 1009 | a message larger than 2 MiB, for `asgi_app` and `fastapi_endpoint`; a `web_server` decides for itself |
| 1011 | it has been open for the Function's `timeout` |
| 1012 | the router stops: come back |
| 1001 | towards the program: the router stops |
"""


def errors_page() -> str:
    """Every code, by status."""
    rows = [f"| {status} | `{code}` | {retry} | {when} | {helps} |" for status, code, retry, when, helps in CODES]
    head = ["", "| status | code | Retry-After | when | what helps |", "|---|---|---|---|---|"]
    return BEFORE + "\n".join([*head, *rows]) + "\n" + AFTER
