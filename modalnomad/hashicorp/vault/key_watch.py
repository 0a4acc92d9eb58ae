"""A router learns of a new platform key while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.platform_key import PATH, PlatformKeys, keep, read_keys
from modalnomad.model.errors import BackendError

logger = logging.getLogger("modalnomad.secrets")

PAUSE: Final = 1.0
"""Seconds between two looks at least, whoever refuses our tickets."""


class KeyWatch:
    """Looks every `every` seconds, and when it is asked to, as long as `run` runs; `tell` hears of other keys than
    `known`, which are kept in `cache`."""

    def __init__(
        self,
        client: VaultClient,
        cache: Path,
        known: PlatformKeys,
        tell: Callable[[PlatformKeys], None],
        *,
        every: float,
    ) -> None:
        self._client = client
        self._cache = cache
        self._known = known
        self._tell = tell
        self._every = every
        self._asked = asyncio.Event()
        self._failing = False

    def ask(self) -> None:
        """Somebody takes none of our tickets: look soon."""
        self._asked.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._asked.wait()
            self._asked.clear()
            await self.look()
            await asyncio.sleep(PAUSE)

    async def look(self) -> None:
        """Once. Where Vault has no key, or gives no answer, the known one stands; told once in a row."""
        try:
            found = await read_keys(self._client)
        except BackendError as error:
            self._fail(error.message)
            return
        if found is None:
            self._fail(f"Vault holds no platform key at {self._client.settings.mount}/{PATH} any more")
            return
        self._failing = False
        if found == self._known:
            return
        logger.info("the platform key is another one%s", "; the one before it holds, too" if found.previous else "")
        self._known = found
        self._tell(found)
        await keep(self._cache, found)

    def _fail(self, message: str) -> None:
        if not self._failing:
            logger.warning("whether there is a new platform key: %s", message)
        self._failing = True
