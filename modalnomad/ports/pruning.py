"""Pruning: what is stored, what of it goes by rule, and how one thing is removed while others work beside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from modalnomad.model.apps import Needed


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is stored. `size`: bytes. `why` it goes or stays, in a few words."""

    kind: str
    """`App`, `bundle`, `unpacked`, `image`, `secret` or `log`; on a cluster `App`, `job`, `artifact`, `image` or
    `secret`."""
    name: str
    size: int
    goes: bool
    why: str
    environment: str = ""
    """Empty: of all of them."""
    key: str = ""
    """What its shelf knows it by, where that is not its name."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for one look. Times: Unix."""

    needed: Needed
    apps: frozenset[tuple[str, str]]
    """(environment, App) of every record that stays."""
    put_before: float
    """Nothing stored or used later than this goes: a deploy, or a `serve`, that is under way may need it."""
    now: float


def fate(needed: bool, stored: float, rule: Rule) -> tuple[bool, str]:
    """Goes it, and why. `stored`: Unix time."""
    if needed:
        return False, "a kept version needs it"
    if stored >= rule.put_before:
        return False, "stored or used a short while ago"
    return True, "no kept version needs it"


NowRule = Callable[[], Awaitable[Rule]]
"""What holds now."""


class Shelf(Protocol):
    """All things of one kind. Nothing here raises for one thing that cannot be looked at: it stays, and says why."""

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """Everything that is there. Raises BackendRefused when the shelf cannot be looked at."""

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """Remove it; bytes freed. None: it stays, because it is in use or needed by now (`rule` says what holds now,
        asked when nobody else can take the thing any more). Raises BackendError."""

    async def tidy(self) -> None:
        """Remove what killed processes left half-way, where there is such. Raises BackendError."""
        return
