"""Places, idle times and drain, with a clock of the test's own."""

from __future__ import annotations

import pytest
from modalnomad_sdk.contract import DRAIN_PATH, HEADER_REPLICA, READY_PATH
from modalnomad_sdk.runner.door_answers import Porter
from modalnomad_sdk.runner.doors import Doors


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def doors(clock: Clock) -> Doors:
    return Doors(2, clock)


def test_places(doors: Doors) -> None:
    assert [doors.enter(), doors.enter(), doors.enter()] == [True, True, False]
    doors.leave()
    assert doors.enter()


def test_drain_waits_for_idleness(doors: Doors, clock: Clock) -> None:
    doors.open()
    clock.now += 5
    assert not doors.drain(6)
    assert doors.enter()  # a refused drain changes nothing
    clock.now += 60
    assert not doors.drain(0)
    doors.leave()
    assert not doors.drain(1)
    clock.now += 1
    assert doors.drain(1)
    assert doors.draining
    assert not doors.enter()
    assert doors.drain(1000)  # it drains already


def test_shut_lets_those_inside_finish(doors: Doors) -> None:
    doors.enter()
    doors.shut()
    assert not doors.enter()
    assert doors.running == 1


def test_changes_are_told(doors: Doors) -> None:
    told: list[tuple[bool, int]] = []
    doors.on_change = lambda: told.append((doors.draining, doors.running))
    doors.enter()
    doors.leave()
    doors.shut()
    doors.shut()
    assert told == [(False, 0), (True, 0)]


def test_greetings_and_requests_keep_it_from_being_forgotten(doors: Doors, clock: Clock) -> None:
    doors.open()
    clock.now += 10
    assert doors.forgotten_for() == 10
    doors.contact()
    assert (doors.forgotten_for(), doors.idle_for()) == (0, 10)
    doors.enter()
    clock.now += 10
    assert (doors.forgotten_for(), doors.idle_for()) == (0, 0)


def porter(doors: Doors) -> Porter:
    import hashlib

    return Porter(hashlib.sha256(b"secret").hexdigest(), "pool 0.1", doors)


@pytest.mark.parametrize(("ticket", "good"), [(b"secret", True), (b"secre", False), (b"", False), (b"\xff", False)])
def test_tickets(doors: Doors, ticket: bytes, good: bool) -> None:
    assert porter(doors).admits(ticket) is good


@pytest.mark.parametrize(
    ("method", "path", "query", "status"),
    [
        ("GET", READY_PATH, b"", 200),
        ("POST", READY_PATH, b"", 404),
        ("GET", DRAIN_PATH, b"", 404),
        ("POST", DRAIN_PATH, b"idle_for=soon", 400),
        ("POST", DRAIN_PATH, b"idle_for=nan", 400),
        ("POST", DRAIN_PATH, b"idle_for=9999", 409),
        ("POST", DRAIN_PATH, b"idle_for=0", 202),
        ("GET", "/.modalnomad/other", b"", 404),
    ],
)
def test_private_paths(doors: Doors, method: str, path: str, query: bytes, status: int) -> None:
    answer = porter(doors).private(method, path, query)
    assert answer.status == status
    assert (HEADER_REPLICA.encode(), b"pool 0.1") in answer.headers
