"""Which routers run, and what each serves: keys of their own sessions, gone with them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from modalnomad.hashicorp.consul.api import ConsulApi, Entry, dumped
from modalnomad.hashicorp.consul.following import pause_after
from modalnomad.hashicorp.consul.records import part
from modalnomad.hashicorp.consul.sessions import LEAST_TTL, SessionLost, open_session
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError

logger = logging.getLogger("modalnomad.consul")

FORMAT: Final = 1
LOOK: Final = 10.0
"""Seconds between two looks whether the key is still there."""


@dataclass(frozen=True, slots=True)
class RouterInfo:
    """One router, as it says of itself."""

    name: str
    port: int
    """Of its public listener."""
    tls: bool
    """It speaks HTTPS there."""
    environment: str = ""
    """The one it serves; empty: all."""
    serials: Mapping[str, int] = field(default_factory=dict)
    """`<environment>/<app>` → serial of the record it acts on."""
    version: str = ""
    """Of modalnomad."""
    started_at: float = 0.0
    """Unix time."""


class RouterPresence:
    """Keeps `<prefix>/routers/<name>` while this process lives: a crash removes it within 10 to 20 s, `close` at
    once. Consul may be down: it is told again when it answers."""

    def __init__(self, api: ConsulApi, prefix: str, name: str, *, ttl: float = LEAST_TTL) -> None:
        self._api = api
        self._key = f"{_folder(prefix)}{part(name)}"
        self._name = name
        self._ttl = ttl
        self._info: Cell[RouterInfo | None] = Cell(None)
        self._tasks = Tasks("presence")
        self._running = False

    async def tell(self, info: RouterInfo) -> None:
        """What everybody should read from now on. Does not wait for Consul."""
        self._info.set(info)
        if not self._running:
            self._running = True
            self._tasks.spawn(self._keep(), self._name)

    async def close(self) -> None:
        """Nobody reads of it any longer. Twice does nothing more."""
        await self._tasks.close()

    async def _keep(self) -> None:
        failures = 0
        while True:
            try:
                # Nobody else wants this key: it need not stay locked after us.
                async with open_session(
                    self._api, f"modalnomad router {self._name}", ttl=self._ttl, lock_delay=0
                ) as session:
                    failures = 0
                    await self._tell(session.id)
            except (BackendError, SessionLost) as error:
                failures += 1
                if failures == 1:
                    logger.warning("this router's presence in Consul is gone for now: %s", error)
            await asyncio.sleep(pause_after(max(failures, 1)))

    async def _tell(self, session: str) -> None:
        told: bytes | None = None
        while True:
            wanted = encoded(self._info.value)
            if told is not None and told == wanted:
                found = (await self._api.get(self._key)).items
                told = found[0].value if found and found[0].session == session else None
            if told != wanted:
                if not await self._api.put(self._key, wanted, acquire=session):
                    raise SessionLost(f"somebody else holds {self._key}")
                told = wanted
            await self._until_other(wanted)

    async def _until_other(self, told: bytes) -> None:
        """Or until it is time for a look."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self._info.until(lambda info: encoded(info) != told)


async def routers(api: ConsulApi, prefix: str) -> tuple[RouterInfo, ...]:
    """All that run now, by name. Raises BackendError. What a newer one says in another format is left out."""
    found = await api.tree(_folder(prefix))
    return tuple(info for info in map(decoded, found.items) if info is not None)


def encoded(info: RouterInfo | None) -> bytes:
    """The value of its key."""
    return dumped({"format": FORMAT, "router": asdict(info) if info is not None else None})


def decoded(entry: Entry) -> RouterInfo | None:
    """None: nobody's, or not readable here."""
    try:
        content: Any = json.loads(entry.value)
        fields = content["router"]
        if content["format"] != FORMAT or not entry.session:
            return None
        return RouterInfo(
            name=str(fields["name"]),
            port=int(fields["port"]),
            tls=bool(fields["tls"]),
            environment=str(fields["environment"]),
            serials={str(app): int(serial) for app, serial in fields["serials"].items()},
            version=str(fields["version"]),
            started_at=float(fields["started_at"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("Consul's key %s is no router's; it is left out", entry.key)
        return None


def _folder(prefix: str) -> str:
    return f"{prefix}/routers/"
