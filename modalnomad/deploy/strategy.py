"""What becomes of a version's replicas when the next one takes over."""

from __future__ import annotations

from enum import StrEnum


class Strategy(StrEnum):
    """How the old replicas go."""

    ROLLING = "rolling"
    """The new version is as warm as the old one before anybody is sent to it; the old one finishes what it holds."""
    RECREATE = "recreate"
    """The old replicas are ended as soon as nobody is sent to them any more, whatever they hold."""
