"""What every command that changes a deployed App works with, whatever runs replicas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modalnomad.deploy.build import Builder
from modalnomad.deploy.changing import OpenStage
from modalnomad.deploy.prewarming import Prewarm
from modalnomad.deploy.revising import Stores
from modalnomad.ports.discovery import Discovery
from modalnomad.settings import Settings
from modalnomad.wiring.parts import address


@dataclass(frozen=True, slots=True)
class Listener:
    """Where requests go in."""

    port: int
    """0: not known before a platform runs."""
    tls: bool
    server: str = "up"
    """Name of the command that serves what is deployed."""

    def url(self, host: str) -> str | None:
        """Public address of a host name."""
        return address(host, self.port, tls=self.tls) if self.port else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployParts:
    """Builds and publishes; runs nothing."""

    settings: Settings
    builder: Builder
    discovery: Discovery
    stores: Stores
    stage: OpenStage
    """The platform that runs; None: none does."""
    keep: int
    """Versions of an App that are kept."""
    prewarm: Prewarm | None = None
    """Makes a revision's environment on all machines; None: replicas run where images are made anyway."""
    listener: Callable[[bool], Awaitable[Listener]]
    """Where requests go in; the argument: whether a platform was there to take the change."""
