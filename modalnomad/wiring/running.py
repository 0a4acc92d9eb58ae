"""What other commands ask of the platform that runs on this home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from modalnomad.model.errors import BackendError
from modalnomad.settings import Settings
from modalnomad.wiring.control import control_call


async def replicas_by_app(settings: Settings) -> Mapping[tuple[str, str], int] | None:
    """(environment, App) → replicas that are up or coming; None: no platform runs, or it does not answer."""
    try:
        containers = await control_call(settings, "containers")
    except BackendError:
        return None
    return Counter((container["environment"], container["app"]) for container in containers)
