"""The one place where a home is looked at before anything in it is read or written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modalnomad_sdk.store import ImageStore

from modalnomad.embedded.home import open_home
from modalnomad.embedded.store import named_lock
from modalnomad.settings import Settings


def home_of(settings: Settings) -> Path:
    """The home, checked; a new one is marked with its format. Raises BackendRefused, see `embedded.home.open_home`."""
    return open_home(settings.home)


def image_store(settings: Settings) -> ImageStore:
    """The images of this machine's replicas. Raises BackendRefused, see `home_of`."""
    return ImageStore(home_of(settings) / "images")


@contextmanager
def working(settings: Settings, what: str) -> Iterator[None]:
    """Until it is left, nothing that this process stores is pruned. `what` is `serve` or `run` (those of
    `embedded.prune.WORKING`); a deploy has its App's lock. Raises BackendRefused."""
    name = f"{what}-{os.getpid()}-{secrets.token_hex(3)}"
    path = home_of(settings) / "locks" / f"{name}.lock"
    with named_lock(path, f"the lock {name!r}"):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
