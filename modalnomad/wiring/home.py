"""The one place where a home is looked at before anything in it is read or written."""

from __future__ import annotations

from pathlib import Path

from modalnomad.embedded.home import open_home
from modalnomad.settings import Settings


def home_of(settings: Settings) -> Path:
    """The home, checked; a new one is marked with its format. Raises BackendRefused, see `embedded.home.open_home`."""
    return open_home(settings.home)
