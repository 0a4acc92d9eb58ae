"""How busy pools are: counts for tests, `serve` and admin."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from modalnomad.router.places import PlaceState
from modalnomad.router.pool import Pool


@dataclass(frozen=True, slots=True)
class Load:
    """Counts of one revision's pools."""

    pools: int = 0
    waiting: int = 0
    running: int = 0
    starting: int = 0
    ready: int = 0
    leaving: int = 0
    wakes: int = 0
    starts: int = 0


def count(pools: Collection[Pool]) -> Load:
    """All of them together."""
    places = [place for pool in pools for place in pool.places]
    return Load(
        pools=len(pools),
        waiting=sum(len(pool.tickets) for pool in pools),
        running=sum(pool.running for pool in pools),
        starting=sum(place.state is PlaceState.STARTING for place in places),
        ready=sum(place.state is PlaceState.READY for place in places),
        leaving=sum(not place.live for place in places),
        wakes=sum(pool.wakes for pool in pools),
        starts=sum(pool.starts for pool in pools),
    )
