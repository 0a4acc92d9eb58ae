"""All checks of a cluster, all servers at once. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from modalnomad.hashicorp.checks.common import check_clocks, check_names, skew
from modalnomad.hashicorp.checks.consul import consul_checks
from modalnomad.hashicorp.checks.nomad import nomad_checks
from modalnomad.hashicorp.checks.vault import vault_checks
from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.http import HttpClient
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.vault.client import HEALTH, VaultClient
from modalnomad.kit.finding import Finding, problem
from modalnomad.model.errors import ModalNomadError
from modalnomad.settings import Settings

LIMIT: Final = 30.0
"""Seconds for all that is asked of one server."""
ODD: Final = "what answers there is not what it should be, or something is in between; look at the address"


async def examine_cluster(settings: Settings) -> list[Finding]:
    """In an order in which one reads it. Never raises for what a server does, or does not."""
    groups = await asyncio.gather(
        _guarded("dns", lambda: _names(settings)),
        _guarded("nomad", lambda: _nomad(settings)),
        _guarded("vault", lambda: _vault(settings)),
        _guarded("consul", lambda: _consul(settings)),
        _guarded("clock", lambda: _clocks(settings)),
    )
    return [finding for group in groups for finding in group]


async def _guarded(name: str, check: Callable[[], Awaitable[Sequence[Finding]]]) -> Sequence[Finding]:
    """What fails is a finding too, and keeps no other from being made."""
    try:
        async with asyncio.timeout(LIMIT):
            return await check()
    except TimeoutError:
        return [problem(name, f"it cannot be told within {LIMIT:g} s", "look whether the server or the network hangs")]
    except ModalNomadError as error:
        return [problem(name, error.message, error.hint or ODD)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [problem(name, f"its answer cannot be read: {type(error).__name__} {error}", ODD)]


async def _names(settings: Settings) -> Sequence[Finding]:
    return await check_names(
        {
            "nomad.address": settings.nomad.address,
            "vault.address": settings.vault.address,
            "consul.address": settings.consul.address,
        }
    )


async def _nomad(settings: Settings) -> Sequence[Finding]:
    http = HttpClient(nomad_server(settings.nomad))
    try:
        return await nomad_checks(http, settings.nomad, settings.environment)
    finally:
        await http.close()


async def _vault(settings: Settings) -> Sequence[Finding]:
    client = VaultClient(settings.vault)
    try:
        return await vault_checks(client, settings, settings.environment)
    finally:
        await client.close()


async def _consul(settings: Settings) -> Sequence[Finding]:
    http = HttpClient(consul_server(settings.consul))
    try:
        return await consul_checks(http, settings.consul)
    finally:
        await http.close()


async def _clocks(settings: Settings) -> Sequence[Finding]:
    """Of those that answer; that one does not is said elsewhere."""
    opened: dict[str, Callable[[], HttpClient | VaultClient]] = {
        "Nomad": lambda: HttpClient(nomad_server(settings.nomad)),
        "Vault": lambda: VaultClient(settings.vault),
        "Consul": lambda: HttpClient(consul_server(settings.consul)),
    }
    ahead = {}
    for name, open_client in opened.items():
        with suppress(ModalNomadError):
            client = open_client()
            try:
                path = HEALTH if isinstance(client, VaultClient) else "/v1/status/leader"
                answer = await client.request("GET", path, ok=tuple(range(100, 600)))
            finally:
                await client.close()
            if (seconds := skew(answer.headers, time.time())) is not None:
                ahead[name] = seconds
    return [check_clocks(ahead)]
