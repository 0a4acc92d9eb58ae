"""Every code the router can answer, for people: `docs/errors.md` is made from it, a test holds it against the code."""

from __future__ import annotations

from typing import Final

CODES: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("400, 426", "bad_request", "", "The request's head or body can be read in two ways or in none, or a WebSocket "
     "handshake is wrong (426: not version 13). The connection is closed.", "Mend the client."),
    ("401", "missing_credentials", "", "The endpoint asks for a token, and none was sent.",
     "`modalnomad token create`; send `Modal-Key` and `Modal-Secret`."),
    ("401", "invalid_credentials", "", "What was sent is no token that exists.",
     "`modalnomad token list`: it may have been deleted."),
    ("403", "forbidden", "", "The token belongs to another environment than the endpoint.",
     "Create one there: `modalnomad token create --env NAME`."),
    ("404", "unknown_endpoint", "", "Nothing is served under this host name, or the path is below `/.modalnomad/`.",
     "`modalnomad app list`: deployed, not stopped? Is the `Host` that of the URL?"),
    ("408", "head_timeout", "", "The head was not complete within `router.head_timeout`.", "A slow or broken client."),
    ("413", "body_too_large", "", "The body is larger than `router.body_limit`.", "Send less, or raise the setting."),
    ("414", "target_too_long", "", "The request line is longer than `router.head_limit`.", "Use a body for it."),
    ("422", "bad_parameter", "", "A class parameter is missing in the query, or has the wrong type.",
     "The detail names it."),
    ("429", "rate_limited", "yes", "More requests per second than the environment, endpoint or token may have.",
     "Come back later; `router.rate`, `router.rates`, `token create --rate`."),
    ("429", "queue_full", "yes", "`router.queue_limit` requests wait for this Function already.",
     "More replicas: `max_containers`, `@modal.concurrent`, `modalnomad app scale`."),
    ("429", "too_many_pools", "yes", "More sets of class parameters are in use at once than `router.max_pools`.",
     "Come back later, or raise the setting."),
    ("431", "head_too_large", "", "The head is larger than `router.head_limit`.", "Fewer or smaller headers."),
    ("500", "internal_error", "", "The router itself failed.", "Its log says how; please report it."),
    ("501", "not_implemented", "", "A method the router does not serve, such as `CONNECT`.", ""),
    ("502", "bad_answer", "", "The replica's answer is not valid HTTP/1.1.", "Mend the server of the Function."),
    ("502", "replica_gone", "", "The replica ended before it answered, and the request cannot be tried again safely.",
     "`modalnomad app logs`: a crash, or out of memory?"),
    ("503", "start_failed", "while it pauses", "No replica could be started: it ended before it was ready, or the "
     "image or source is gone. After repeated failures one trial at a time, with a growing pause.",
     "`modalnomad app logs`; deploy a version that starts."),
    ("503", "no_capacity", "yes", "No room for another replica now (`embedded.max_replicas`, a GPU that is in use), or "
     "the replica is full and the body cannot be sent again.", "Come back later; raise the setting."),
    ("503", "unplaceable", "", "No machine there is can run the Function. The embedded back end refuses such a deploy, "
     "and does not answer this.", ""),
    ("503", "queue_timeout", "yes", "Replicas are alive, but none had room within `router.queue_timeout`.",
     "More replicas, as for `queue_full`."),
    ("503", "draining", "yes", "The router is stopping.", "Come back in a moment."),
    ("503", "too_many_connections", "yes", "More clients are connected than the limit of open files leaves room for, "
     "or no connection to a replica could be opened.", "Raise `ulimit -n` (`LimitNOFILE` in the unit)."),
    ("504", "startup_timeout", "", "The replica was not ready within the Function's `startup_timeout` (else "
     "`timeout`).", "`modalnomad app logs`; a longer `startup_timeout`."),
    ("504", "execution_timeout", "", "The Function gave no answer within its `timeout`, counted from its place in a "
     "replica.", "A longer `timeout`, or a stream."),
    ("505", "version_not_supported", "", "Neither HTTP/1.1 nor HTTP/1.0.", "Put a proxy in front for others."),
)  # fmt: skip
"""Status, code, whether there is a Retry-After, when, what helps."""
