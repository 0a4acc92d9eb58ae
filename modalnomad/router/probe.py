"""What the router asks of a replica itself: are you ready, will you drain, here is a greeting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from modalnomad.model.replica import Address


class Asker(Protocol):
    """One small private request to a replica (`Upstream.ask`). Returns status, headers, body."""

    async def __call__(
        self,
        address: Address,
        method: bytes,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        timeout: float | None,
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Raises ConnectionError when nobody answers, TimeoutError after `timeout` seconds (None: no limit)."""
