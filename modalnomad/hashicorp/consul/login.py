"""A router that runs as a job logs in to Consul anew when its token ends.

Nomad logs a task in once, before its allocation starts, and hands over the same token after each restart. When that
ends (its auth method has a MaxTokenTTL or was deleted, somebody deleted it), only another allocation would get one.

API: https://developer.hashicorp.com/consul/api-docs/acl#login-to-auth-method
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Final

from modalnomad.hashicorp.consul.server import HEADER
from modalnomad.hashicorp.http import HttpClient
from modalnomad.model.errors import BackendError

logger = logging.getLogger("modalnomad.consul")

PAUSE: Final = 15.0
"""Seconds between two looks at the token."""
AHEAD: Final = 45.0
"""Seconds before its end at which a token is replaced. None ends earlier than a minute after its login."""
FAREWELL_LIMIT: Final = 3.0
"""Seconds a logout may take."""
UNKNOWN: Final = (403, 404)
"""What Consul answers to who shows a token that it does not know; before 1.15, 403."""


class LoginRenewal:
    """Gives `http` another token when Consul no longer knows the one it has, or soon will not, while `run` runs.
    `file`: holds an identity for Consul that Nomad signed, and keeps fresh; `method`: the auth method that takes it."""

    def __init__(self, http: HttpClient, file: Path, method: str) -> None:
        self._http = http
        self._file = file
        self._method = method
        self._own = ""
        self._end = 0.0
        """Of its own, on the monotonic clock."""
        self._told = ""

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self.look()
            await asyncio.sleep(PAUSE)

    async def look(self) -> None:
        """Look at the token, and log in where it is none any more, or soon. What keeps it from that is logged, once in
        a row."""
        try:
            answer = await self._http.request("GET", "/v1/acl/token/self", ok=(200, 401, *UNKNOWN))
        except BackendError:
            return  # those who follow Consul tell that it is away
        try:
            if answer.status == 401 or (answer.status == 200 and self._left(answer.json()) > AHEAD):
                self._told = ""
                return
            await self._login()
        except BackendError as error:
            self._tell(error.message)
        except (OSError, UnicodeDecodeError) as error:
            self._tell(f"cannot use {self._file}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._tell("its answer to the login cannot be read")

    async def _login(self) -> None:
        before = monotonic()
        identity = (await asyncio.to_thread(self._file.read_text, "ascii")).strip()
        body = {"AuthMethod": self._method, "BearerToken": identity, "Meta": {"requested_by": "modalnomad_router"}}
        answer = await self._http.request("POST", "/v1/acl/login", data=body)
        made = answer.json()
        token, life = str(made["SecretID"]), _life(made)
        self._own, self._end = token, before + life
        self._http.server = replace(self._http.server, headers=lambda: {HEADER: token})
        self._told = ""
        logger.info("logged in to Consul anew, by the identity in %s", self._file)

    def _left(self, token: Mapping[str, Any]) -> float:
        """Seconds until it ends. Of its own it knows when they began, whatever the clocks here and there show."""
        if self._own:
            return self._end - monotonic()
        end = token.get("ExpirationTime")
        return (datetime.fromisoformat(end) - datetime.now(UTC)).total_seconds() if end else inf

    def _tell(self, what: str) -> None:
        if what != self._told:
            logger.warning("the token of Consul ends or has ended, and no other one can be had: %s", what)
        self._told = what

    async def close(self) -> None:
        """Log out what it logged in; what Nomad logged in, Nomad logs out."""
        if self._own:
            self._own = ""
            with suppress(BackendError):
                await self._http.request("POST", "/v1/acl/logout", limit=FAREWELL_LIMIT)


def _life(token: Mapping[str, Any]) -> float:
    """Seconds from its beginning to its end, both by Consul's clock."""
    end = token.get("ExpirationTime")
    return (datetime.fromisoformat(end) - datetime.fromisoformat(token["CreateTime"])).total_seconds() if end else inf
