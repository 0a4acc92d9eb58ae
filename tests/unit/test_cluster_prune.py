"""Which values of `Secret.from_dict` go, and when Nomad's jobs are listed for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from modalnomad.hashicorp.prune import AnonymousShelf
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.model.apps import Needed
from modalnomad.ports.pruning import Rule

OLD, YOUNG = 10.0, 1000.0
NEEDED, OTHERS, LEFT = "a" * 64, "b" * 64, "c" * 64
RULE = Rule(
    Needed(frozenset(), frozenset(), frozenset({("main", NEEDED)}), frozenset()), frozenset(), put_before=500.0, now=2e3
)


class Secrets:
    def __init__(self, stored: Mapping[str, float]) -> None:
        self.stored = stored

    async def anonymous(self, environment: str) -> Mapping[str, float]:
        return self.stored if environment == "main" else {}


class Place:
    """A shelf with these values, and how often it asked what others need."""

    def __init__(self, stored: Mapping[str, float]) -> None:
        secrets = cast("VaultSecrets", Secrets(stored))
        self.shelf = AnonymousShelf(secrets, self._environments, self._others)
        self.asked = 0

    async def _environments(self) -> Sequence[str]:
        return ("main", "staging")

    async def _others(self) -> frozenset[str]:
        self.asked += 1
        return frozenset({OTHERS})


async def test_what_no_version_and_no_job_of_others_needs_goes() -> None:
    place = Place({NEEDED: OLD, OTHERS: OLD, LEFT: OLD})
    found = {item.key: (item.goes, item.why) for item in await place.shelf.look(RULE)}

    assert found == {
        NEEDED: (False, "a kept version needs it"),
        OTHERS: (False, "a job names it"),
        LEFT: (True, "no kept version needs it"),
    }
    assert place.asked == 1


@pytest.mark.parametrize("stored", [{}, {NEEDED: OLD}, {NEEDED: OLD, OTHERS: YOUNG, LEFT: YOUNG}])
async def test_jobs_of_others_are_not_listed_where_nothing_would_go(stored: Mapping[str, float]) -> None:
    place = Place(stored)

    assert not [item for item in await place.shelf.look(RULE) if item.goes]
    assert place.asked == 0
