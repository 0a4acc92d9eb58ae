"""Which of several tickets a replica is asked with: it takes the one it was started with, and no other."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence

import pytest

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Address, PoolKey, ReplicaKey, TcpAddress
from modalnomad.router import probe
from modalnomad.router.probe import DrainRefused, Prober

OLD, NEW, THIRD = b"o" * 32, b"n" * 32, b"t" * 32
REVISION = RevisionId("a" * 32)
KEY = ReplicaKey(PoolKey(REVISION), 0, 1)
HERE = TcpAddress("127.0.0.1", 1)


def ticket(key: bytes) -> bytes:
    return hmac.new(key, REVISION.encode(), hashlib.sha256).hexdigest().encode()


class Replica:
    """Started with a ticket of this key; notes what it was asked with."""

    def __init__(self, key: bytes) -> None:
        self.takes = ticket(key)
        self.asked: list[bytes] = []
        self.drains: list[bool] = []

    async def ask(
        self,
        address: Address,
        method: bytes,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        timeout: float | None,
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        shown = dict(headers)[b"modalnomad-ticket"]
        self.asked.append(shown)
        if shown != self.takes:
            return 403, [], b"This replica is reached through its router only.\n"
        mine = [(b"modalnomad-replica", f"{KEY.pool} {KEY.name}".encode())]
        if method == b"POST":
            return 409, mine, b'{"running": 0, "idle_for": 2.5}'
        return 200, mine, b"ready\n"


@pytest.mark.parametrize(
    ("made_with", "keys", "asked"),
    [
        (NEW, (NEW,), [NEW]),
        (NEW, (NEW, OLD), [NEW]),
        (OLD, (NEW, OLD), [NEW, OLD]),
        (OLD, (OLD,), [OLD]),
    ],
    ids=["one key", "new of two", "old of two", "not rotated yet"],
)
async def test_the_newest_that_it_takes(made_with: bytes, keys: tuple[bytes, ...], asked: list[bytes]) -> None:
    replica = Replica(made_with)
    prober = Prober(replica.ask, keys[0])
    prober.know(keys)

    assert await prober.ready(KEY, HERE) == ticket(made_with)
    assert replica.asked == [ticket(key) for key in asked]


async def test_what_it_took_comes_first_from_then_on_also_when_its_key_is_forgotten() -> None:
    replica = Replica(OLD)
    prober = Prober(replica.ask, OLD)
    taken = await prober.ready(KEY, HERE)
    prober.know((NEW,))
    replica.asked.clear()

    assert await prober.ready(KEY, HERE, taken) == taken
    await prober.greet(KEY, HERE, taken)
    with pytest.raises(DrainRefused) as refused:
        await prober.drain(KEY, HERE, 1.0, ticket=taken)
    assert replica.asked == [taken] * 3
    assert refused.value.idle_for == 2.5


async def test_one_that_was_never_ready_is_drained_with_whatever_it_takes() -> None:
    replica = Replica(OLD)
    prober = Prober(replica.ask, NEW)
    prober.know((NEW, OLD))

    with pytest.raises(DrainRefused):
        await prober.drain(KEY, HERE, 1.0)
    assert replica.asked == [ticket(NEW), ticket(OLD)]


async def test_a_key_that_is_not_known_yet_is_asked_for_and_then_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STRANGER_PAUSE", 0)
    replica = Replica(THIRD)
    prober = Prober(replica.ask, NEW)
    prober.know((NEW, OLD))
    wanted: list[bool] = []

    def unknown() -> None:
        wanted.append(True)
        if len(wanted) == 3:
            prober.know((THIRD, NEW))

    prober.on_unknown = unknown
    assert await prober.ready(KEY, HERE) == ticket(THIRD)
    assert replica.asked == [ticket(NEW), ticket(OLD)] * 3 + [ticket(THIRD)]
    assert len(wanted) == 3


async def test_no_key_is_asked_for_by_who_takes_the_ticket_and_is_somebody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "STRANGER_PAUSE", 0)
    replica = Replica(NEW)
    prober = Prober(replica.ask, NEW)
    prober.on_unknown = lambda: pytest.fail("it took the ticket")
    other = ReplicaKey(PoolKey(REVISION), 7, 1)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await prober.ready(other, HERE)
    assert set(replica.asked) == {ticket(NEW)}
