"""How often clients may ask that ask again and again, so that no router, on however quick a machine, tells them 429."""

from __future__ import annotations

from modalnomad.settings import RouterSettings


def turn(clients: int = 1) -> float:
    """Seconds from one request of such a client to its next, at least, when there are so many of them: together they
    stay at four fifths of what a router lets into an environment."""
    return 1.25 * clients / RouterSettings().rate
