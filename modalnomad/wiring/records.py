"""What commands need that only read or write records. Importing it loads no router and no engine."""

from __future__ import annotations

from dataclasses import dataclass

from modalnomad_sdk.store import ImageStore

from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.secrets import Secrets
from modalnomad.settings import Settings


@dataclass(frozen=True, slots=True)
class Records:
    """Secrets and everything else that is written down."""

    secrets: Secrets
    discovery: Discovery


def open_records(settings: Settings) -> Records:
    """Starts nothing."""
    return Records(EmbeddedSecrets(settings.home), EmbeddedDiscovery(settings.home))


def image_store(settings: Settings) -> ImageStore:
    """The images of this machine's replicas."""
    return ImageStore(settings.home / "images")
