"""Direct ports: each endpoint's own on 127.0.0.1, remembered in the home so that it survives a restart."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from modalnomad.embedded.store import read_record, write_record
from modalnomad.model.errors import BackendRefused
from modalnomad.router.server import RouterServer

logger = logging.getLogger("modalnomad.up")

KIND: Final = "ports"
FORMAT: Final = 1
FIRST, COUNT = 20000, 12000
"""Where new ones are looked for: below those that systems give to connections, which would be in the way at times."""
TRIES: Final = 20
REMEMBERED: Final = 2000
"""Ports kept for hosts that are not served."""


class Doors:
    """Opens and closes them. `<home>/ports.json` holds host → port."""

    def __init__(self, router: RouterServer, home: Path) -> None:
        self._router = router
        self._path = home / "ports.json"
        self._remembered: dict[str, int] = {}
        self._open: dict[str, int] = {}

    @property
    def ports(self) -> Mapping[str, int]:
        """Host → port, of those that are open."""
        return MappingProxyType(self._open)

    async def load(self) -> None:
        """Read what is remembered. A file that cannot be used is said and replaced by the next one."""
        try:
            content = await asyncio.to_thread(read_record, self._path, KIND, FORMAT)
        except BackendRefused as error:
            logger.warning("%s; endpoints get new direct ports", error.message)
            return
        found = (content or {}).get("ports")
        if isinstance(found, dict):
            self._remembered = {
                host: port for host, port in found.items() if isinstance(port, int) and 0 < port < 65536
            }

    async def follow(self, hosts: Iterable[str]) -> None:
        """Open those of these hosts, close all others."""
        wanted = dict.fromkeys(hosts)
        for host in self._open.keys() - wanted.keys():
            del self._open[host]
            await self._router.close_direct(host)
        before = dict(self._remembered)
        for host in wanted.keys() - self._open.keys():
            try:
                self._open[host] = await self._open_one(host)
            except BackendRefused as error:
                logger.error("%s has no direct port: %s", host, error.message)
        if self._remembered != before:
            self._forget_some()
            try:
                await asyncio.to_thread(write_record, self._path, KIND, FORMAT, {"ports": self._remembered})
            except BackendRefused as error:
                logger.warning("%s; direct ports may change with a restart", error.message)

    async def _open_one(self, host: str) -> int:
        if (known := self._remembered.get(host)) is not None:
            try:
                return await self._router.direct_port(host, known)
            except BackendRefused as error:
                port = await self._new_port(host)
                logger.warning("the direct port of %s is %d now, not %d: %s", host, port, known, error.message)
        else:
            port = await self._new_port(host)
        for other in [other for other, taken in self._remembered.items() if taken == port]:
            del self._remembered[other]
        self._remembered[host] = port
        return port

    async def _new_port(self, host: str) -> int:
        kept = set(self._remembered.values())
        for _ in range(TRIES):
            port = FIRST + secrets.randbelow(COUNT)
            if port not in kept:
                try:
                    return await self._router.direct_port(host, port)
                except BackendRefused:
                    continue
        return await self._router.direct_port(host)

    def _forget_some(self) -> None:
        unserved = [host for host in self._remembered if host not in self._open]
        for host in unserved[: max(0, len(unserved) - REMEMBERED)]:
            del self._remembered[host]
