"""What commands need that only read or write records. Importing it loads no router and no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modalnomad_sdk.store import ImageStore

from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.environments import EnvironmentInfo
from modalnomad.embedded.environments import environments as environments_of
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.secrets import Secrets
from modalnomad.settings import Settings
from modalnomad.wiring.home import home_of

if TYPE_CHECKING:
    from modalnomad.wiring.prune import Pruned


@dataclass(frozen=True, slots=True)
class Records:
    """Secrets and everything else that is written down."""

    secrets: Secrets
    discovery: Discovery


def open_records(settings: Settings) -> Records:
    """Starts nothing. Raises BackendRefused, see `home_of`."""
    home = home_of(settings)
    return Records(EmbeddedSecrets(home), EmbeddedDiscovery(home))


def image_store(settings: Settings) -> ImageStore:
    """The images of this machine's replicas. Raises BackendRefused, see `home_of`."""
    return ImageStore(home_of(settings) / "images")


def environments(settings: Settings) -> tuple[EnvironmentInfo, ...]:
    """Those of this home. Raises BackendRefused."""
    return environments_of(home_of(settings))


async def prune(settings: Settings) -> Pruned:
    """Remove what goes by the rules (docs/operate/home.md), without asking: after each deploy. Never raises for what
    cannot be looked at or removed: that stands in `problems`."""
    from modalnomad.wiring.prune import prune as prune_home

    return await prune_home(settings)
