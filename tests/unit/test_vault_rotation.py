"""Which replicas are replaced because their secrets changed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from modalnomad.hashicorp.vault.rotation import Rotation, stale, versions_of, versions_text
from modalnomad.model.errors import BackendUnreachable, UserError
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey

A, B = RevisionId("a" * 32), RevisionId("b" * 32)


def key(revision: RevisionId, number: int = 0) -> ReplicaKey:
    return ReplicaKey(PoolKey(revision, ""), number, 1)


@pytest.mark.parametrize("versions", [{}, {"db": 1}, {"db": 12, "api": 3, "a_b-c": 7}])
def test_versions_come_back_from_their_text(versions: dict[str, int]) -> None:
    assert versions_of(versions_text(versions)) == versions


def test_text_is_sorted_so_that_equal_versions_are_equal_text() -> None:
    assert versions_text({"db": 1, "api": 2}) == versions_text({"api": 2, "db": 1}) == "api=2,db=1"


@pytest.mark.parametrize(
    ("started", "current", "reason"),
    [
        ("db=1", {"db": 1}, ""),
        ("db=1", {"db": 2}, "secret db has version 2, it was started with 1"),
        ("db=3", {"db": 1}, "secret db has version 1, it was started with 3"),
        ("db=1", {}, ""),
        ("", {"db": 2}, ""),
        ("db=1", {"db": 1, "new": 1}, ""),
        ("nonsense,=,db=,=3,db=1x", {"db": 2}, ""),
        (
            "api=1,db=1",
            {"db": 2, "api": 3},
            "secret api has version 3, it was started with 1; secret db has version 2, it was started with 1",
        ),
    ],
)
def test_another_version_is_a_reason_and_an_absent_one_is_not(
    started: str, current: dict[str, int], reason: str
) -> None:
    assert stale(started, current) == reason


class World:
    """What runs, what Vault says, what was told."""

    def __init__(self) -> None:
        self.running: dict[ReplicaKey, str] = {}
        self.current: dict[RevisionId, dict[str, int]] = {}
        self.down = False
        self.wrong: set[RevisionId] = set()
        self.asked: list[RevisionId] = []
        self.told: list[Mapping[ReplicaKey, str]] = []
        self.rotation = Rotation(running=lambda: self.running, current=self.ask, tell=self.told.append, every=30.0)

    async def ask(self, revision: RevisionId) -> Mapping[str, int]:
        self.asked.append(revision)
        if self.down:
            raise BackendUnreachable("Vault does not answer")
        if revision in self.wrong:
            raise UserError("'..' is not the name of an environment")
        return self.current[revision]

    async def look(self) -> set[ReplicaKey]:
        await self.rotation.look()
        return set(self.told[-1])


async def test_replicas_with_older_values_are_told_and_each_revision_is_asked_once() -> None:
    world = World()
    world.running = {key(A, 0): "db=1", key(A, 1): "db=2", key(B): "db=1", key(RevisionId("c" * 32)): ""}
    world.current = {A: {"db": 2}, B: {"db": 1}}

    assert await world.look() == {key(A, 0)}
    assert world.asked == [A, B]
    del world.running[key(A, 0)]
    assert await world.look() == set()


async def test_what_was_told_stands_while_vault_is_away_which_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.running = {key(A, 0): "db=1", key(A, 1): "db=2"}
    world.current = {A: {"db": 2}}
    await world.look()
    world.down = True

    assert await world.look() == {key(A, 0)}
    assert await world.look() == {key(A, 0)}
    assert len(caplog.records) == 1
    world.down = False
    await world.look()
    world.down = True
    await world.look()
    assert len(caplog.records) == 2


async def test_a_lower_number_is_believed_when_it_is_seen_twice() -> None:
    world = World()
    world.running = {key(A): "db=3"}
    world.current = {A: {"db": 1}}

    assert await world.look() == set()
    assert await world.look() == {key(A)}
    world.current = {A: {"db": 3}}
    assert await world.look() == set()
    world.current = {A: {"db": 1}}
    assert await world.look() == set()


async def test_a_record_that_names_no_secret_that_can_be_keeps_no_other_from_being_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.running = {key(A): "db=1", key(B): "db=1"}
    world.current = {B: {"db": 2}}
    world.wrong = {A}

    assert await world.look() == {key(B)}
    assert await world.look() == {key(B)}
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "'..' is not the name of an environment"
    ]
