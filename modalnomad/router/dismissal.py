"""One replica sent away because somebody asked for it: what it holds is finished, and nothing brings it back."""

from __future__ import annotations

from modalnomad.model.replica import ReplicaKey
from modalnomad.router.activator import Activator
from modalnomad.scaling.decide import Reason


def dismiss(activator: Activator, key: ReplicaKey, now: float) -> bool:
    """False: it is not there, or leaves already. Requests that wait get another one."""
    for pool in activator.pools():
        place = pool.places.get(key)
        if place is not None and place.live:
            place.going = True
            activator.apply(pool, pool.shed({key.number}, now, Reason("asked", "stopped by hand")))
            activator.on_change()
            return True
    return False
