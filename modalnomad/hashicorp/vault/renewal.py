"""A long-running process keeps its token of Vault alive, as long as that can be renewed.

API: https://developer.hashicorp.com/vault/api-docs/auth/token
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.model.errors import ModalNomadError

logger = logging.getLogger("modalnomad.secrets")

SHARE: Final = 3
"""It is renewed when a third of its life is over: two more tries are left."""
SOONEST: Final = 1.0
LATEST: Final = 3600.0
"""Seconds between two looks."""
AGAIN: Final = 15.0
"""Seconds after a look that failed."""


class TokenRenewal:
    """Renews the token of `client` while `run` runs."""

    def __init__(self, client: VaultClient) -> None:
        self._client = client
        self._told = ""

    async def run(self) -> None:
        """Never returns."""
        while True:
            pause = await self.look()
            await asyncio.sleep(pause)

    async def look(self) -> float:
        """Look at the token and renew it if that helps; seconds until the next look. What keeps it from being renewed
        is logged, once in a row."""
        try:
            data = (await self._client.request("GET", "auth/token/lookup-self")).json()["data"]
            ttl = float(data.get("ttl") or 0)
            if ttl and data.get("renewable"):
                answer = await self._client.request("POST", "auth/token/renew-self", {})
                renewed = float(answer.json()["auth"]["lease_duration"])
                if renewed < float(data.get("creation_ttl") or 0) / 2:
                    self._tell(f"its token ends in {renewed:.0f} s, for good: its longest life is nearly over")
                else:
                    self._told = ""
                ttl = renewed
            elif ttl:
                self._tell(f"its token ends in {ttl:.0f} s, and cannot be renewed")
        except ServerRefused as error:
            if error.status == 403:
                self._tell("it does not let the token look at itself: unknown, ended, or without the policy `default`")
            else:
                self._tell(error.message)
            return AGAIN
        except ModalNomadError as error:
            self._tell(error.message)
            return AGAIN
        except (ValueError, KeyError, TypeError, AttributeError):
            self._tell("its answer about the token cannot be read")
            return AGAIN
        return min(max(ttl / SHARE, SOONEST), LATEST) if ttl else LATEST

    def _tell(self, what: str) -> None:
        # Numbers change with each look; the rest says whether it is told already.
        kind = "".join(letter for letter in what if not letter.isdigit())
        if kind != self._told:
            logger.warning("Vault at %s: %s", self._client.address, what)
        self._told = kind
