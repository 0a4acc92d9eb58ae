"""The platform's own key: from it come the tickets that let routers, and nobody else, talk to replicas."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from modalnomad.embedded.store import translated, write_bytes
from modalnomad.model.errors import BackendRefused

FILE_NAME: Final = "platform.key"
LENGTH: Final = 32


def platform_key(home: Path) -> bytes:
    """The key of this home, 32 bytes, created once whoever comes first. Raises BackendRefused."""
    path = home / FILE_NAME
    with translated(f"create {path}"), suppress(FileExistsError):
        if not path.exists():
            write_bytes(path, secrets.token_hex(LENGTH).encode(), replace=False)
    with translated(f"read {path}"):
        raw = path.read_bytes()
    try:
        key = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != LENGTH:
        raise BackendRefused(
            f"{path} is damaged: it does not hold {LENGTH} hexadecimal bytes",
            "stop every modalnomad of this home and remove the file; a new key is made at the next start",
        )
    return key
