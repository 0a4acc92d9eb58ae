"""All checks of the embedded back end: looks at this machine and says what it found. Changes nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import platform
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from modalnomad import __version__
from modalnomad.embedded.checks import home as of_home
from modalnomad.embedded.checks import machine as of_machine
from modalnomad.embedded.checks import service as of_service
from modalnomad.embedded.checks.certificates import validity
from modalnomad.embedded.gpus import find_gpus
from modalnomad.embedded.limits import available
from modalnomad.embedded.network import namespaces_allowed
from modalnomad.embedded.records import Records
from modalnomad.embedded.runs import SOCKET_PATH_LIMIT
from modalnomad.kit.finding import Finding, problem
from modalnomad.model.errors import BackendError, ModalNomadError
from modalnomad.settings import UP_ADMIN_PORT, UP_PORT, Settings, config_file
from modalnomad.wiring import doctor_facts as facts
from modalnomad.wiring.control import NotRunning, open_control
from modalnomad.wiring.tls import tls_context

ANSWER: Final = 10.0
"""Seconds a running `up` has to say how it is."""
LIMIT: Final = 30.0
"""Seconds one check may take; all together mostly take one."""

Found = Finding | Iterable[Finding]


async def examine(settings: Settings) -> list[Finding]:
    """Everything, all at once; in an order in which one reads it."""
    running, trouble = await _ask_up(settings)
    up = of_service.check_version_of_up(str(running["version"]) if running else None, __version__)
    checks: Sequence[tuple[str, Callable[[], Found | Awaitable[Found]]]] = (
        ("versions", versions_found),
        ("settings", settings_file),
        ("times", lambda: of_service.check_times(settings)),
        ("home", lambda: of_home.check_home(facts.home_facts(settings.home))),
        ("disk", lambda: of_home.check_space(*facts.space(settings.home))),
        ("sizes", lambda: of_home.check_sizes(*facts.sizes(settings.home))),
        ("records", lambda: _records(settings.home)),
        ("clock", lambda: of_home.check_clock(time.time(), facts.newest_record(settings.home))),
        ("up", lambda: [of_service.check_up(running, trouble), *([up] if up else ())]),
        ("ports", lambda: _ports(settings, running, bool(trouble))),
        ("exposure", lambda: of_service.check_exposure(settings, loopback_of(settings))),
        ("certificate", lambda: certificate_found(settings)),
        ("python", lambda: of_machine.check_pythons(*facts.pythons(settings.home))),
        ("uv", lambda: of_machine.check_uv(*facts.uv())),
        ("network", lambda: _network(settings)),
        ("processes", lambda: of_machine.check_processes(facts.pid_namespaces())),
        ("limits", lambda: _limits(settings)),
        ("open files", lambda: of_machine.check_open_files(*facts.open_files(), settings.embedded.max_replicas)),
        ("sockets", lambda: _sockets(settings.home)),
        ("gpu", lambda: of_machine.check_gpus([gpu.name for gpu in find_gpus()])),
    )
    found = await asyncio.gather(*(guarded(name, check) for name, check in checks))
    return [finding for group in found for finding in group]


async def guarded(name: str, check: Callable[[], Found | Awaitable[Found]]) -> list[Finding]:
    """A check that fails is a finding too, and keeps no other from being made."""
    try:
        async with asyncio.timeout(LIMIT):
            found = await asyncio.to_thread(check)
            result = found if isinstance(found, Finding) or not isinstance(found, Awaitable) else await found
    except TimeoutError:
        return [problem(name, f"it cannot be told within {LIMIT:g} s", "look whether the machine or a disk hangs")]
    except (OSError, ValueError, subprocess.SubprocessError, ModalNomadError) as error:
        return [problem(name, f"it cannot be told: {error}", "look at the message; run it as the user of `up`")]
    return [result] if isinstance(result, Finding) else list(result)


async def _ask_up(settings: Settings) -> tuple[Mapping[str, Any] | None, str]:
    """What a running `up` says; why it says nothing."""
    if not await asyncio.to_thread(os.path.isdir, settings.home):
        return None, ""
    try:
        # Not `control_call`: that makes a home of the folder.
        async with asyncio.timeout(ANSWER), open_control(settings.home) as control:
            return await control.call("status", {}), ""
    except NotRunning:
        return None, ""
    except BackendError as error:
        return None, f"{error.message} ({error.hint})" if error.hint else error.message
    except TimeoutError:
        return None, f"one runs on {settings.home}, and gives no answer within {ANSWER:g} s"


def versions_found() -> Finding:
    """Of what runs here."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return of_machine.check_versions(__version__, metadata.version("modalnomad-sdk"), platform.python_version(), system)


def settings_file() -> Finding:
    """It could be read, or nobody were here."""
    import tomllib

    path = config_file()
    if not path.is_file():
        return of_service.check_settings_file(str(path), False, (), 0)
    unknown = sorted(tomllib.loads(path.read_text("utf-8")).keys() - Settings.model_fields.keys())
    return of_service.check_settings_file(str(path), True, unknown, path.stat().st_mode & 0o022)


def _records(home: Path) -> Finding:
    if not home.is_dir():
        return of_home.check_records((), 0)
    records = Records(home)
    damaged = [str(found) for found in records.problems()]
    damaged += facts.damaged_secrets(home)
    count = sum(1 for kind in ("discovery", "secrets") for _ in (home / kind).rglob("*.json"))
    return of_home.check_records(damaged, count)


def _ports(settings: Settings, running: Mapping[str, Any] | None, hanging: bool) -> Iterable[Finding]:
    router = settings.router
    wanted = [("endpoints", router.host, UP_PORT if router.port is None else router.port)]
    if router.admin_host:
        admin = UP_ADMIN_PORT if router.admin_port is None else router.admin_port
        wanted.append(("metrics and health", router.admin_host, admin))
    for name, host, port in wanted:
        if not port:
            continue
        state, holder = facts.port_state(host, port), ""
        if state == "taken":
            holder = facts.holder(port)
            if hanging or (running and holder.startswith(f"process {running['pid']} ")):
                state = "ours"
        yield of_service.check_port(name, port, state, holder)


def loopback_of(settings: Settings) -> dict[str, bool]:
    """Address → is it reached from this machine only?"""
    return {host: _is_loopback(host) for host in (settings.router.host, settings.router.admin_host) if host}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def certificate_found(settings: Settings) -> Iterable[Finding]:
    """Of the router; none without TLS."""
    path = settings.router.tls_cert
    try:
        context = tls_context(settings.router)
    except ModalNomadError as error:
        return [problem("certificate", error.message, error.hint or "")]
    if context is None or path is None:
        return []
    text = path.read_text("ascii", "replace")
    first = text[text.index("-----BEGIN CERTIFICATE") : text.index("-----END CERTIFICATE-----") + 25]
    begins, ends = validity(ssl.PEM_cert_to_DER_cert(first))
    return [of_service.check_certificate(str(path), begins, ends, time.time())]


async def _network(settings: Settings) -> Iterable[Finding]:
    setting = settings.embedded.network
    allowed = await namespaces_allowed()
    used = allowed and setting in {"auto", "namespace"}
    return [
        of_machine.check_namespaces(allowed, setting, facts.forbidding()),
        of_machine.check_pasta(*facts.pasta(), used),
    ]


def _limits(settings: Settings) -> Finding:
    setting = settings.embedded.limits
    return of_machine.check_limits(available(settled=False).missing if setting == "auto" else {}, setting)


def _sockets(home: Path) -> Finding:
    length, elsewhere = facts.socket_path(Path(os.path.abspath(home)))
    return of_machine.check_socket_path(length, SOCKET_PATH_LIMIT, elsewhere)
