"""Images for tests: the few that the guides' programs share, built once into a home before anybody waits for them."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalnomad_sdk.store import ImageStore

from modalnomad.deploy.images import resolve_and_build_here
from modalnomad.model.manifest import Image, ImageStep
from modalnomad.model.revision import BuiltImage

GUIDES: tuple[tuple[str, ...] | None, ...] = (
    None,
    ("fastapi[standard]",),
    ("fastapi[standard]", "boto3"),
    ("boto3",),
    ("flask",),
)
"""What the guides' programs ask `pip_install` for; None: no image at all."""


def pip_image(*packages: str, **arguments: Any) -> Image:
    """`Image.debian_slim().pip_install(*packages)`."""
    steps = (ImageStep(kind="pip_install", arguments={"packages": list(packages), **arguments}, where="app.py:1"),)
    return Image(steps=steps, where="app.py:1")


def prewarm(home: Path, images: Sequence[tuple[str, ...] | None] = GUIDES) -> list[BuiltImage]:
    """Build them in `home` unless they are there; processes that ask at once wait for the first one."""
    store = ImageStore(home / "images")
    store.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "locks").mkdir(mode=0o700, exist_ok=True)  # where a home has them: it is not to be taken for something else
    with open(home / "locks" / "prewarm.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return [
            resolve_and_build_here(pip_image(*packages) if packages else None, store, lambda line: None)
            for packages in images
        ]
