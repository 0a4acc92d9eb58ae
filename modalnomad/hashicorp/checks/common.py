"""What is asked of every server alike: its name, its clock, its version. Decisions are pure."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from modalnomad.kit.finding import Finding, ok, problem, warning

SKEW_TOLD: Final = 5.0
"""Seconds between two clocks that are told: `Date` has whole seconds, and an answer takes a moment."""
SKEW_BREAKS: Final = 60.0
"""Seconds from which signed identities may be refused."""
RESOLVE_LIMIT: Final = 5.0
"""Seconds for the address of a name."""


def version_of(text: str) -> tuple[int, ...]:
    """`1.22.5+ent` → (1, 22, 5); empty: none can be seen."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups(default="0")) if found else ()


def check_version(check: str, name: str, version: str, least: str, tried: str = "") -> Finding | None:
    """None: it is new enough. `least`: has all that is asked of it; `tried`: what the tests run with, if with any."""
    found = version_of(version)
    if not found:
        return None
    if found < version_of(least):
        seen = f"; {tried} is tried" if tried else ""
        return problem(check, f"{name} {version} is too old", f"take {least} or newer{seen}")
    if tried and found[0] < version_of(tried)[0]:
        return warning(check, f"{name} {version} is older than what is tried here ({tried})", f"take {tried} or newer")
    return None


def skew(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds by which a server's clock is ahead of this machine's; None: it does not say."""
    try:
        return parsedate_to_datetime(headers["Date"]).timestamp() - now
    except (KeyError, ValueError, TypeError):
        return None


def check_clocks(ahead: Mapping[str, float]) -> Finding:
    """By server, seconds."""
    wrong = {name: seconds for name, seconds in ahead.items() if abs(seconds) > SKEW_TOLD}
    if not wrong:
        return ok("clock", f"{', '.join(ahead)} and this machine agree" if ahead else "no server tells its time")
    told = ", ".join(f"{name}'s is {abs(s):.0f} s {'ahead' if s > 0 else 'behind'}" for name, s in wrong.items())
    level = problem if max(abs(seconds) for seconds in wrong.values()) > SKEW_BREAKS else warning
    return level(
        "clock",
        f"clocks differ from this machine's: {told}; identities that are signed on one may not count on another",
        "run NTP (chrony, systemd-timesyncd) on every machine of the cluster",
    )


async def check_names(addresses: Mapping[str, str]) -> list[Finding]:
    """Setting → URL. Only what is wrong, or one word that nothing is."""
    wrong = []
    for setting, url in addresses.items():
        host = urlsplit(url).hostname
        if not host:
            wrong.append(problem("dns", f"{setting} = {url} has no host name", "correct it: http://host:port"))
            continue
        try:
            async with asyncio.timeout(RESOLVE_LIMIT):
                await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, TimeoutError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else getattr(error, "strerror", "") or error
            wrong.append(
                problem("dns", f"{host} of {setting} has no address: {why}", "correct the setting, or the DNS")
            )
    hosts = sorted({urlsplit(url).hostname or "" for url in addresses.values()})
    return wrong or [ok("dns", f"{', '.join(hosts)} resolve" if len(hosts) > 1 else f"{hosts[0]} resolves")]
