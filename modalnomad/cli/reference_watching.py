"""The reference pages of what can be watched: metrics, and the fields of the access log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modalnomad.router.access_lines import FIELDS
from modalnomad.router.metrics import ALL, Described
from modalnomad.router.telemetry import SECONDS

QUERIES: Final[tuple[tuple[str, str], ...]] = (
    ("Requests per second of each App", "sum by (environment, app) (rate(modalnomad_requests_total[5m]))"),
    (
        "Share of answers that are errors of a server, the router's own included",
        'sum by (app) (rate(modalnomad_requests_total{status="5xx"}[5m])) / sum by (app) '
        "(rate(modalnomad_requests_total[5m]))",
    ),
    (
        "95 of 100 requests are answered within",
        "histogram_quantile(0.95, sum by (app, endpoint, le) (rate(modalnomad_request_duration_seconds_bucket[5m])))",
    ),
    (
        "Seconds a request waits for its replica, on average",
        "sum by (app, function) (rate(modalnomad_request_wait_seconds_sum[5m])) / sum by (app, function) "
        "(rate(modalnomad_request_wait_seconds_count[5m]))",
    ),
    (
        "Cold starts per hour, by what came of them",
        "sum by (app, outcome) (increase(modalnomad_wake_seconds_count[1h]))",
    ),
    (
        "9 of 10 cold starts take at most",
        'histogram_quantile(0.9, sum by (app, le) (rate(modalnomad_wake_seconds_bucket{outcome="ready"}[1h])))',
    ),
    ("Replicas that are ready", 'sum by (app, function) (modalnomad_replicas{state="ready"})'),
    (
        "Requests refused for their rate, or because the queue was full",
        'sum by (app, code) (rate(modalnomad_router_answers_total{code=~"rate_limited|queue_full"}[5m]))',
    ),
)
"""Question, PromQL."""
ALERTS: Final[tuple[tuple[str, str, str], ...]] = (
    ("No answer to scrapes, or not ready", "2m", 'up{job="modalnomad"} == 0 or modalnomad_ready == 0'),
    ("A Function does not start", "5m", "modalnomad_breakers_open > 0"),
    (
        "Requests wait for long: too few replicas, or max_containers too low",
        "5m",
        "histogram_quantile(0.95, sum by (app, function, le) (rate(modalnomad_request_wait_seconds_bucket[5m]))) > 10",
    ),
    ("Replicas die", "10m", "sum by (app, function) (increase(modalnomad_replica_deaths_total[10m])) > 3"),
    ("What is served may be out of date", "5m", "increase(modalnomad_loop_failures_total[5m]) > 0"),
    (
        "Logs are lost",
        "0m",
        "increase(modalnomad_access_log_dropped_total[5m]) > 0 or "
        "increase(modalnomad_replica_log_lines_lost_total[5m]) > 0",
    ),
    ("File descriptors run out", "5m", "process_open_fds / process_max_fds > 0.8"),
    ("The router is short of CPU", "5m", "modalnomad_event_loop_lag_seconds > 0.5"),
)
"""What it means, for how long, PromQL."""


def metrics_page() -> str:
    """Every metric with its labels; queries, alerts."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` on the [admin listener](watching.md), in Prometheus' text format 0.0.4, or OpenMetrics 1.0 for "
        "those who accept it.",
        "",
        "Labels are bounded by what is deployed: no host name, path, parameter or client is one. What was counted for "
        "an endpoint stays until an hour after it is no longer served; everything begins at 0 when the router starts. "
        "A series appears with its first event. Histograms are in seconds, with these upper ends: "
        + ", ".join(f"{bound:g}" for bound in SECONDS)
        + ". Beside these there are `process_…` metrics of the router's process (CPU, memory, file descriptors).",
    ]
    for title, group in ALL:
        lines += ["", f"## {title}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
        lines += [_row(described) for described in group]
    lines += ["", "## Useful queries", ""]
    for question, query in QUERIES:
        lines += [f"{question}:", "", f"    {query}", ""]
    lines += [
        "## Alerts",
        "",
        "As rules of Prometheus:",
        "",
        "```yaml",
        "groups:",
        "  - name: modalnomad",
        "    rules:",
    ]
    lines += _alerts()
    return "\n".join([*lines, "```"]) + "\n"


def _row(described: Described) -> str:
    labels = ", ".join(f"`{label}`" for label in described.labels)
    meaning = described.help
    if described.values:
        meaning += f" `{described.labels[-1]}`: {described.values}."
    return f"| `{described.name}` | {described.kind} | {labels} | {meaning} |"


def _alerts() -> Iterator[str]:
    for meaning, wait, expression in ALERTS:
        name = "".join(word.capitalize() for word in meaning.partition(":")[0].replace(",", "").split())
        yield f"      - alert: {name}"
        yield f"        expr: {expression}"
        yield f"        for: {wait}"


def access_log_page() -> str:
    """Every field."""
    lines = [
        "# Fields of the access log",
        "",
        "One line of JSON for each request that is over; how to get one is told in [watching.md](watching.md). Newer "
        "versions may add fields.",
        "",
        "| field | for example | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | `{example}` | {meaning or 'see above'} |" for name, example, meaning in FIELDS),
    ]
    return "\n".join(lines) + "\n"
