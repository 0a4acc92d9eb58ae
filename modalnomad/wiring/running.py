"""What other commands ask of the platform that runs on this home."""

from __future__ import annotations

from collections.abc import Mapping

from modalnomad.settings import Settings


async def replicas_by_app(settings: Settings) -> Mapping[tuple[str, str], int] | None:
    """(environment, App) → replicas that are up or coming; None: no platform runs, or it does not answer."""
    return None
