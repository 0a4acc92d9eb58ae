"""Every metric by name, with what it means: the contract of /metrics. `docs/operate/metrics.md` is made from it.

Labels are few and bounded by what is deployed: never a host name, a path, a parameter's value or a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ENDPOINT: Final = ("environment", "app", "function", "endpoint")
FUNCTION: Final = ("environment", "app", "function")


@dataclass(frozen=True, slots=True)
class Described:
    """One metric. `name` as it is queried, a counter's with `_total`; a histogram's without `_bucket`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: str = ""
    """What the last label may be, for the page."""


REQUESTS = Described(
    "modalnomad_requests_total",
    "counter",
    "Requests that are over, WebSockets included.",
    (*ENDPOINT, "status"),
    "`1xx` (101: a WebSocket that has ended), `2xx`, `3xx`, `4xx`, `5xx`; `none`: the client left, or was cut off, "
    "before an answer. Requests that led to no endpoint have empty labels",
)
ANSWERS = Described(
    "modalnomad_router_answers_total",
    "counter",
    "Requests the router answered itself, by its error code.",
    (*ENDPOINT, "code"),
    "as in `Modalnomad-Error`: `rate_limited`, `queue_full`, `start_failed`, `execution_timeout` …",
)
DURATION = Described(
    "modalnomad_request_duration_seconds",
    "histogram",
    "From a request's head to the last byte of its answer; no WebSockets.",
    ENDPOINT,
)
FIRST_BYTE = Described(
    "modalnomad_request_first_byte_seconds",
    "histogram",
    "From a request's head to the beginning of its replica's answer.",
    ENDPOINT,
)
WAIT = Described(
    "modalnomad_request_wait_seconds",
    "histogram",
    "From a request's head to its place in a replica: next to nothing, or a wake, or the queue.",
    ENDPOINT,
)
BYTES_IN = Described(
    "modalnomad_request_body_bytes_total",
    "counter",
    "Bytes of request bodies; of WebSockets, all that clients sent.",
    ENDPOINT,
)
BYTES_OUT = Described(
    "modalnomad_response_body_bytes_total",
    "counter",
    "Bytes of bodies passed on to clients; of WebSockets, all that replicas sent.",
    ENDPOINT,
)
IN_FLIGHT = Described(
    "modalnomad_requests_in_flight",
    "gauge",
    "Requests that are being handled, those that wait and WebSockets included.",
)
RETRIES = Described(
    "modalnomad_retries_total",
    "counter",
    "Requests offered to another replica, or over a fresh connection, because the first did not take them.",
    ("reason",),
    "`busy`: it was full; `gone`: no connection to it, or it ended with the request unread; "
    "`stale`: a kept connection was closed",
)
CONNECTIONS = Described("modalnomad_client_connections", "gauge", "Open connections of clients.")
ACCEPTED = Described("modalnomad_client_connections_accepted_total", "counter", "Connections accepted from clients.")
WEBSOCKETS = Described("modalnomad_websockets", "gauge", "Open WebSockets.")
CHANNELS = Described(
    "modalnomad_replica_connections", "gauge", "Open connections to replicas.", ("state",), "`used`, `idle`"
)
CONNECTS = Described("modalnomad_replica_connections_opened_total", "counter", "Connections opened to replicas.")

WAITING = Described(
    "modalnomad_function_requests_waiting", "gauge", "Requests that wait for a place in a replica.", FUNCTION
)
RUNNING = Described(
    "modalnomad_function_requests_running", "gauge", "Requests that have a place in a replica.", FUNCTION
)
REPLICAS = Described(
    "modalnomad_replicas",
    "gauge",
    "Replicas.",
    (*FUNCTION, "state"),
    "`starting`; `ready`; `struck`: did not answer and is asked again; `closing`: takes no more requests; `draining`: "
    "was asked to end, or is being killed",
)
POOLS = Described(
    "modalnomad_pools",
    "gauge",
    "Pools: one for each set of class parameters in use.",
    (*FUNCTION, "state"),
    "`cold`, `waking`, `warm`, `cooling`",
)
BREAKERS = Described(
    "modalnomad_breakers_open",
    "gauge",
    "Pools in which nothing, or one trial at a time, is started because starts failed.",
    FUNCTION,
)
STARTS = Described(
    "modalnomad_replica_starts_total",
    "counter",
    "Replicas asked for.",
    (*FUNCTION, "reason"),
    "`requests`, `min`, `buffer`, `warm`: a deploy, or the command line; `replaced`: another one has to go",
)
START_FAILURES = Described(
    "modalnomad_replica_start_failures_total",
    "counter",
    "Starts that came to nothing.",
    (*FUNCTION, "code"),
    "`start_failed`, `startup_timeout`, `no_capacity`, `unplaceable`, `replica_gone`",
)
START_TIME = Described(
    "modalnomad_replica_start_seconds", "histogram", "From asking for a replica to its being ready.", FUNCTION
)
WAKES = Described(
    "modalnomad_wake_seconds",
    "histogram",
    "Wakes: from a pool without a ready replica to what came of it; `_count` is how many there were.",
    (*FUNCTION, "outcome"),
    "`ready`; the code of the failed start; `abandoned`: no longer wanted",
)
DRAINS = Described(
    "modalnomad_replica_drains_total",
    "counter",
    "Replicas asked to go.",
    (*FUNCTION, "reason"),
    "`idle`, `max`, `retired`, `evicted`, `single_use`; `replaced`: its machine is drained, or a secret "
    "has a newer version; `doubled`: a later start of it is alive",
)
KILLS = Described(
    "modalnomad_replica_kills_total",
    "counter",
    "Replicas ended at once: they did not go, or did not become ready, in time.",
    (*FUNCTION, "reason"),
    "`faulty`, `retired`, `evicted` …",
)
DEATHS = Described(
    "modalnomad_replica_deaths_total", "counter", "Replicas that ended by themselves after they were ready.", FUNCTION
)

ROUTES = Described("modalnomad_routes", "gauge", "Host names that are served.")
FLIPS = Described("modalnomad_route_table_changes_total", "counter", "Route tables taken into use: deploys, tokens.")
FLIP_TIME = Described(
    "modalnomad_route_table_change_seconds", "histogram", "From a new snapshot of the records to requests led by it."
)
FLIPPED_AT = Described(
    "modalnomad_route_table_changed_timestamp_seconds", "gauge", "Unix time of the last change of the route table."
)
READY = Described("modalnomad_ready", "gauge", "1 while /readyz says 200.")
STALE = Described(
    "modalnomad_stale_seconds",
    "gauge",
    "How long a source of what the router knows has not answered; what it last said is used. Absent: it answers.",
    ("source",),
    "as the back end names them",
)
LOOP_FAILURES = Described(
    "modalnomad_loop_failures_total",
    "counter",
    "Rounds of a background loop that failed; it goes on with what it last knew.",
    ("loop",),
    "`routes`, `replicas`, `scaler`",
)
LAG = Described("modalnomad_event_loop_lag_seconds", "gauge", "How late the event loop was when it was last looked at.")
LOG_LINES = Described("modalnomad_access_log_lines_total", "counter", "Lines written to the access log.")
LOG_DROPPED = Described(
    "modalnomad_access_log_dropped_total", "counter", "Lines the access log lost: a full disk, or one too slow."
)
OUTPUT_LOST = Described(
    "modalnomad_replica_log_lines_lost_total", "counter", "Lines of replicas' output that could not be kept in files."
)
BUILD = Described("modalnomad_build_info", "gauge", "Always 1.", ("version",), "modalnomad's own")
STARTED = Described("modalnomad_start_timestamp_seconds", "gauge", "Unix time at which this router started.")

ALL: Final[tuple[tuple[str, tuple[Described, ...]], ...]] = (
    (
        "Requests",
        (REQUESTS, ANSWERS, DURATION, FIRST_BYTE, WAIT, BYTES_IN, BYTES_OUT, IN_FLIGHT, RETRIES, CONNECTIONS, ACCEPTED,
         WEBSOCKETS, CHANNELS, CONNECTS),
    ),
    (
        "Replicas",
        (WAITING, RUNNING, REPLICAS, POOLS, BREAKERS, STARTS, START_FAILURES, START_TIME, WAKES, DRAINS, KILLS, DEATHS),
    ),
    (
        "The platform itself",
        (READY, STALE, ROUTES, FLIPS, FLIP_TIME, FLIPPED_AT, LOOP_FAILURES, LAG, LOG_LINES, LOG_DROPPED, OUTPUT_LOST,
         BUILD, STARTED),
    ),
)  # fmt: skip
"""In the order they are shown."""
