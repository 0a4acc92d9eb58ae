"""What other commands ask of the platform that runs on this home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from modalnomad.model.errors import BackendError
from modalnomad.settings import UP_PORT, Settings
from modalnomad.wiring.control import control_call
from modalnomad.wiring.parts import address


async def replicas_by_app(settings: Settings) -> Mapping[tuple[str, str], int] | None:
    """(environment, App) → replicas that are up or coming; None: no platform runs, or it does not answer."""
    try:
        containers = await control_call(settings, "containers")
    except BackendError:
        return None
    return Counter((container["environment"], container["app"]) for container in containers)


@dataclass(frozen=True, slots=True)
class Listener:
    """Where requests go in."""

    port: int
    """0: not known before a platform runs."""
    tls: bool

    def url(self, host: str) -> str | None:
        """Public address of a host name."""
        return address(host, self.port, tls=self.tls) if self.port else None


async def listener(settings: Settings, *, running: bool) -> Listener:
    """Of the platform that runs, else (also when it went away) as the settings say."""
    if running:
        try:
            status = await control_call(settings, "status")
            return Listener(int(status["port"]), bool(status["tls"]))
        except BackendError:
            pass  # it is told by what else is asked of it
    router = settings.router
    return Listener(UP_PORT if router.port is None else router.port, router.tls_cert is not None)
