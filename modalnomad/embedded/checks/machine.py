"""What this machine lets replicas have, and what it keeps them from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from modalnomad.kit.finding import Finding, ok, problem, warning

CONNECTIONS: Final = 10_000
"""Idle ones that a router should be able to hold."""
PER_REPLICA: Final = 12
"""Descriptors a replica costs the router and the engine, with a few connections to it."""
OWN: Final = 200
CONTROLLED: Final[Mapping[str, str]] = {
    "memory": "memory (memory= in the program)",
    "pids": "processes and threads (embedded.max_processes)",
    "cpu": "CPU (cpu= in the program)",
}


def check_versions(modalnomad: str, sdk: str, python: str, system: str) -> Finding:
    """Of what runs here."""
    shown = f"modalnomad {modalnomad}, Python {python}, {system}"
    if sdk != modalnomad:
        return warning(
            "versions", f"{shown}, but modalnomad-sdk {sdk}", f"pip install modalnomad=={modalnomad} modalnomad-sdk"
        )
    return ok("versions", shown)


def check_pythons(found: Sequence[str], missing: Sequence[str]) -> Finding:
    """For images with `python_version=`."""
    without = f"; not installed: {', '.join(missing)} (only a program that asks for one needs it)" if missing else ""
    return ok("python", f"images can have Python {', '.join(found)}{without}")


def check_uv(version: str | None, error: str, cache: str, cache_writable: bool) -> Finding:
    """The program that builds images. `version` None: it does not work, for the reason in `error`."""
    if version is None:
        return problem("uv", f"uv does not work: {error}", "install it beside modalnomad: python -m pip install uv")
    if not cache_writable:
        return problem("uv", f"uv's cache {cache} cannot be written", "make it writable, or name another: UV_CACHE_DIR")
    return ok("uv", f"{version}, cache {cache}")


def check_namespaces(allowed: bool, setting: str, why: str) -> Finding:
    """Can each `web_server` replica have a network of its own? `why`: the system's own setting that forbids it."""
    if setting == "host":
        return warning(
            "network",
            'embedded.network = "host": a web_server is open on whatever address it binds, past the router',
            'take "auto"',
        )
    if allowed and setting != "exclusive":
        return ok("network", "each replica with a web_server gets a network namespace of its own")
    reason = "the settings say so" if setting == "exclusive" else why or "this system allows no network namespaces"
    return (problem if setting == "namespace" else warning)(
        "network",
        f"a web_server's port belongs to one replica at a time ({reason})",
        'take embedded.network = "auto"'
        if setting == "exclusive"
        else "run as root, or allow user namespaces: sysctl user.max_user_namespaces=10000 (Ubuntu also: "
        "kernel.apparmor_restrict_unprivileged_userns=0)",
    )


def check_pasta(installed: bool, device: bool, used: bool) -> Finding:
    """How a namespace reaches the network outside. `used`: there are namespaces at all."""
    if not used:
        return ok("pasta", "not needed: no network namespaces")
    if not installed:
        return warning(
            "pasta",
            "not installed: a web_server with a network of its own reaches nothing outside",
            "install it (Debian, Fedora: passt)",
        )
    if not device:
        return warning(
            "pasta",
            "may not use /dev/net/tun: a web_server with a network of its own reaches nothing outside",
            "modprobe tun, and chmod 666 /dev/net/tun; in a container: add the device (--device /dev/net/tun)",
        )
    return ok("pasta", "namespaces reach the network outside through it")


def check_processes(namespaces: bool) -> Finding:
    """Is the end of a replica the end of all it started?"""
    if namespaces:
        return ok("processes", "each replica has a PID namespace: what it starts ends with it")
    return warning(
        "processes",
        "no PID namespaces: what a replica starts is found and ended by a supervisor, a daemon a little later",
        "run as root, or allow user namespaces: sysctl user.max_user_namespaces=10000",
    )


def check_limits(missing: Mapping[str, str], setting: Literal["auto", "off"]) -> Finding:
    """What of a replica cannot be bounded, and why."""
    if setting == "off":
        return warning("limits", 'embedded.limits = "off": replicas are bounded by nothing', 'take "auto"')
    if not missing:
        return ok("limits", "memory, processes and CPU of each replica are bounded by control groups")
    what = ", ".join(CONTROLLED.get(name, name) for name in missing)
    return warning(
        "limits",
        f"not bounded here: {what}: {next(iter(missing.values()))}. A replica may take all of the machine's",
        "run `up` as root or as a systemd service with Delegate=yes",
    )


def check_open_files(soft: int | None, hard: int | None, max_replicas: int) -> Finding:
    """Limits of one process; None: none."""
    wanted = CONNECTIONS + OWN + PER_REPLICA * max_replicas
    if soft is None or soft >= wanted:
        return ok("open files", "no limit" if soft is None else f"{soft} (ulimit -n)")
    how = f"ulimit -n {wanted}" if hard is None or hard >= wanted else f"raise the hard limit too (it is {hard})"
    return warning(
        "open files",
        f"{soft} are allowed (ulimit -n); {wanted} are for {CONNECTIONS} connections and {max_replicas} replicas",
        f"{how}; in a systemd unit: LimitNOFILE={wanted}",
    )


def check_socket_path(length: int, limit: int, elsewhere: str | None) -> Finding:
    """Bytes of a replica's socket path below the home; `elsewhere`: the folder that is taken when it is too long."""
    if length <= limit:
        return ok("sockets", f"paths of {length} bytes, {limit} are allowed")
    if elsewhere is not None:
        return ok("sockets", f"in {elsewhere}: below the home their paths had {length} bytes, {limit} are allowed")
    return problem(
        "sockets",
        f"the home's path is too long: sockets in it had {length} bytes, {limit} are allowed",
        "choose a shorter MODALNOMAD_HOME, or make /tmp writable",
    )


def check_gpus(names: Sequence[str]) -> Finding:
    """Those the driver lists."""
    counted = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    return ok("gpu", ", ".join(counted) or "none; a program that asks for one is refused")
