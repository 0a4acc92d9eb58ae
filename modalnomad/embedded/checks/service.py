"""`up`, what it listens on, and its settings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modalnomad.kit.finding import Finding, ok, problem, warning
from modalnomad.settings import Settings

CERTIFICATE_DAYS: Final = 14
DAY: Final = 86400.0


def check_up(status: Mapping[str, Any] | None, error: str) -> Finding:
    """What a running `up` says of itself; None: none runs. `error`: one runs and does not answer."""
    if error:
        return problem("up", error, "look at its log; stop it and start it again")
    if status is None:
        return ok("up", "not running; `modalnomad up` serves what is deployed")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(status["started_at"])))
    return ok("up", f"runs as process {status['pid']} since {since}, {len(status['endpoints'])} endpoints")


def check_version_of_up(running: str | None, own: str) -> Finding | None:
    """None: there is nothing to say."""
    if running is None or running == own:
        return None
    return warning("up", f"it runs modalnomad {running}, and this is {own}", "restart it: modalnomad up")


def check_port(name: str, port: int, state: str, holder: str) -> Finding:
    """`state`: `free`, `ours`, `taken`, or why it cannot be had. `holder`: who has it, as far as can be seen."""
    check = f"port {port}"
    if state == "free":
        return ok(check, f"free for {name}")
    if state == "ours":
        return ok(check, f"held by `up`, for {name}")
    if state == "taken":
        return problem(
            check,
            f"{name} cannot listen there: {holder or 'another program'} has the port",
            "stop that program, or take another port (--port, --admin-port)",
        )
    return problem(check, f"{name} cannot listen there: {state}", "take another port or address, or run as root")


def check_certificate(path: str, begins: float, ends: float, now: float) -> Finding:
    """Its times of validity, Unix time."""
    day = time.strftime("%Y-%m-%d", time.localtime(ends))
    if now > ends:
        return problem("certificate", f"{path} expired on {day}", "renew it and restart `up`")
    if now < begins:
        return problem("certificate", f"{path} is not valid yet", "look at the clock, or at the certificate")
    if ends - now < CERTIFICATE_DAYS * DAY:
        return warning("certificate", f"{path} expires on {day}", "renew it and restart `up`")
    return ok("certificate", f"{path} is valid until {day}")


def check_settings_file(path: str, exists: bool, unknown: Sequence[str], open_to: int) -> Finding:
    """`unknown`: names at its top level that mean nothing. `open_to`: its mode's bits for writing by others."""
    if not exists:
        return ok("settings", f"no settings file ({path}): defaults and environment variables")
    if unknown:
        return warning(
            "settings",
            f"{path}: {', '.join(unknown)} mean nothing and are ignored",
            "correct the names; docs/configuration.md has all of them",
        )
    if open_to:
        return warning("settings", f"{path} can be changed by other users", f"chmod go-w {path}")
    return ok("settings", path)


def check_exposure(settings: Settings, loopback: Mapping[str, bool]) -> Sequence[Finding]:
    """What is open to the network. `loopback`: by address of the settings."""
    router = settings.router
    found = []
    if not loopback[router.host] and router.tls_cert is None:
        found.append(
            warning(
                "exposure",
                f"router.host = {router.host}: endpoints are open to the network, over plain HTTP",
                "give a certificate (--tls-cert, --tls-key), or a proxy with HTTPS in front of 127.0.0.1",
            )
        )
    if router.admin_host and not loopback[router.admin_host]:
        found.append(
            warning(
                "exposure",
                f"router.admin_host = {router.admin_host}: metrics and /debug are open to the network",
                "take 127.0.0.1, or keep the port closed to others",
            )
        )
    return found or [ok("exposure", "listens on this machine alone, or over HTTPS")]


def check_times(settings: Settings) -> Sequence[Finding]:
    """Limits that contradict each other."""
    grace, overstay = settings.embedded.grace_period, settings.scaling.overstay
    if overstay <= grace:
        return [
            warning(
                "times",
                f"scaling.overstay = {overstay:g} s is no longer than embedded.grace_period = {grace:g} s: replicas "
                "are killed before they may finish",
                "make overstay longer",
            )
        ]
    return [ok("times", "limits fit together")]
