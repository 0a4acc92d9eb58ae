"""What a line of the access log says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.router import access_log
from modalnomad.router.access_lines import FIELDS, Lines, Record
from modalnomad.router.access_log import AccessLog
from modalnomad.router.headers import Peer
from modalnomad.router.replies import Answer
from modalnomad.router.telemetry import Meter

METER = Meter("main", "shop", "site", "site")
REPLICA = ReplicaKey(PoolKey(RevisionId("5f" * 16)), 0, 1)
WALL = 1_769_860_800.5  # 2026-01-31T12:00:00.5Z


def record(
    *,
    target: bytes = b"/orders/7?token=hush",
    host: str = "shop.localhost",
    agent: bytes = b"curl/8.5.0",
    client: str = "203.0.113.7",
    meter: Meter | None = METER,
    replica: ReplicaKey | None = REPLICA,
    times: tuple[float, float, float, float] = (100.25, 100.0, 100.001, 100.125),
    code: str = "",
) -> Record:
    ended, arrived, leased, answered = times
    return (
        WALL, ended, arrived, leased, answered, b"a1" * 16, b"GET", host, target, 200, code, meter, replica, client,
        3, 512, agent, True,
    )  # fmt: skip


def said(lines: Lines, wanted: Record) -> dict[str, Any]:
    line = lines.line(wanted)
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    assert line.isascii()
    read: dict[str, Any] = json.loads(line)
    return read


def test_a_line_has_every_documented_field_in_order() -> None:
    read = said(Lines(), record())

    assert list(read) == [name for name, _, _ in FIELDS]
    assert read == {
        "event": "request",
        "time": "2026-01-31T12:00:00.250Z",
        "request_id": "a1" * 16,
        "method": "GET",
        "host": "shop.localhost",
        "path": "/orders/7",
        "status": 200,
        "code": None,
        "complete": True,
        "environment": "main",
        "app": "shop",
        "function": "site",
        "endpoint": "site",
        "replica": f"{'5f' * 16}.0.1",
        "client": "203.0.113.7",
        "bytes_in": 3,
        "bytes_out": 512,
        "waited": 0.001,
        "first_byte": 0.125,
        "duration": 0.25,
        "user_agent": "curl/8.5.0",
    }


def test_what_did_not_come_about_is_null() -> None:
    read = said(
        Lines(), record(meter=None, replica=None, agent=b"", times=(5.0, 5.0, 0.0, 0.0), code="unknown_endpoint")
    )

    nothing = ("environment", "app", "function", "endpoint", "replica", "waited", "first_byte", "user_agent")
    assert {name: read[name] for name in nothing} == dict.fromkeys(nothing)
    assert (read["code"], read["duration"]) == ("unknown_endpoint", 0.0)


@pytest.mark.parametrize(
    "agent", [b'"}\n{"event":"request"', b"\x1b[31mred\x00", b"caf\xe9", b"\\", "€".encode(), b"\x7f\x9b"]
)
def test_no_client_writes_a_line_of_its_own(agent: bytes) -> None:
    read = said(Lines(), record(agent=agent, target=b'/a"b\\c?"', host='x"y', client='"1'))

    assert read["user_agent"] == agent.decode("latin-1")
    assert (read["path"], read["host"], read["client"]) == ('/a"b\\c', 'x"y', '"1')


def test_what_lines_share_is_not_mixed_up() -> None:
    lines = Lines()
    meters = [Meter("main", f"app{number}", "f", "f") for number in range(3)]
    replicas = [None, *(ReplicaKey(REPLICA.pool, number, 1) for number in range(3))]

    for number in range(3000):
        meter, replica = meters[number % 3], replicas[number % 4]
        read = said(lines, record(meter=meter, replica=replica, agent=b"agent %d" % number, client=f"c{number}"))
        assert read["app"] == meter.app
        assert read["replica"] == (str(replica) if replica is not None else None)
        assert (read["user_agent"], read["client"]) == (f"agent {number}", f"c{number}")


def test_a_log_that_cannot_keep_up_drops_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "WAITING", 3)
    log = AccessLog("/nowhere/never-opened")

    for _ in range(5):
        log.add_refusal(Peer("127.0.0.1", 1), b"1", Answer(400, "bad_request", ""))

    assert (log.dropped, log.written) == (2, 0)
