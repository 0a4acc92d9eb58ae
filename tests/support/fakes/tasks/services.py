"""A group's Consul services: registered as Nomad's client registers them, and looked after until they leave."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.support.fakes.tasks.events import duration

SYNC: Final = 30.0
"""Seconds between looks at what Consul has."""
RETRY: Final = 1.0
"""Seconds after one that failed. Nomad's are from 1 to 30."""
LIMIT: Final = 5.0
"""Seconds for one answer."""


def registrations(
    alloc: Mapping[str, Any], group: Mapping[str, Any], replace: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Bodies of `PUT /v1/agent/service/register`, keys as Nomad 2.0.5 sends them."""
    found = []
    ports = {port["Label"]: port for port in alloc["AllocatedResources"]["Shared"].get("Ports") or []}
    for service in group.get("Services") or []:
        if (service.get("Provider") or "consul") != "consul":
            continue
        label, name = service.get("PortLabel") or "", replace(service["Name"])
        port = ports.get(label) or {"HostIP": "", "Value": 0}
        identity = f"_nomad-task-{alloc['ID']}-group-{group['Name']}-{name}-{label}"
        body: dict[str, Any] = {"ID": identity, "Name": name}
        if service.get("Tags"):
            body["Tags"] = [replace(tag) for tag in service["Tags"]]
        meta = {key: replace(value) for key, value in (service.get("Meta") or {}).items()}
        body |= {"Port": port["Value"], "Address": port["HostIP"], "Meta": {"external-source": "nomad"} | meta}
        checks = [_check(identity, each, port, replace) for each in service.get("Checks") or []]
        found.append(body | {"Check": None, "Checks": checks or None})
    return found


def _check(
    service: str, check: Mapping[str, Any], port: Mapping[str, Any], replace: Callable[[str], str]
) -> dict[str, Any]:
    address = f"{port['HostIP']}:{port['Value']}"
    made = {
        "CheckID": f"_nomad-check-{hashlib.sha256(f'{service}{sorted(check.items())}'.encode()).hexdigest()}",
        "Name": replace(check.get("Name") or f'service: "{service}" check'),
        "Interval": duration(check["Interval"] / 1e9),
        "Timeout": duration(check["Timeout"] / 1e9),
    }
    if check["Type"] == "http":
        made["HTTP"] = f"{check.get('Protocol') or 'http'}://{address}{replace(check.get('Path') or '/')}"
    else:
        made["TCP"] = address
    for ours, theirs in (
        ("Method", "Method"),
        ("Header", "Header"),
        ("Body", "Body"),
        ("InitialStatus", "Status"),
        ("SuccessBeforePassing", "SuccessBeforePassing"),
        ("FailuresBeforeCritical", "FailuresBeforeCritical"),
        ("TLSSkipVerify", "TLSSkipVerify"),
    ):
        if check.get(ours):
            made[theirs] = check[ours]
    return made


@dataclass(frozen=True, slots=True)
class Consul:
    """What an agent's `consul` block says. `address` empty: there is none."""

    address: str = ""
    token: str = field(default="", repr=False)


class Services:
    """`keep` runs until `leave` has taken all of them away again, however often Consul does not answer meanwhile."""

    def __init__(self, session: aiohttp.ClientSession, consul: Consul, bodies: list[dict[str, Any]]) -> None:
        self._session, self._consul, self._bodies = session, consul.address, bodies
        self._headers = {"X-Consul-Token": consul.token} if consul.token else {}
        self._leaving, self._gone = asyncio.Event(), asyncio.Event()

    async def keep(self) -> None:
        """Register, look again now and then, deregister at the end."""
        while not self._leaving.is_set():
            wait = SYNC if await self._sync() else RETRY
            try:
                await asyncio.wait_for(self._leaving.wait(), wait)
            except TimeoutError:
                continue
        while not all([await self._put(f"deregister/{body['ID']}") for body in self._bodies]):
            self._gone.set()  # whoever waits does not wait for a Consul that is away
            await asyncio.sleep(RETRY)
        self._gone.set()

    async def leave(self) -> None:
        """Returns when they have been taken away, or cannot be now."""
        self._leaving.set()
        await self._gone.wait()

    async def _sync(self) -> bool:
        try:
            url, timeout = f"{self._consul}/v1/agent/services", aiohttp.ClientTimeout(total=LIMIT)
            async with self._session.get(url, headers=self._headers, timeout=timeout) as response:
                known = await response.json() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            known = None
        if known is None:
            return False
        return all([await self._put("register", body) for body in self._bodies if body["ID"] not in known])

    async def _put(self, what: str, body: dict[str, Any] | None = None) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=LIMIT)
            url = f"{self._consul}/v1/agent/service/{what}"
            async with self._session.put(url, json=body, headers=self._headers, timeout=timeout) as response:
                return response.status in {200, 404}
        except (aiohttp.ClientError, TimeoutError):
            return False
