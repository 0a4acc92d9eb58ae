"""The replica's whole configuration: `MODALNOMAD_*` read once, checked at once, frozen."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from modalnomad_sdk import contract as c

T = TypeVar("T")
D = TypeVar("D")

NETWORKS = ("host", "namespace", "exclusive")


class BadConfiguration(Exception):
    """One message that names every variable that is missing or wrong."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("the replica's environment is not right:\n" + "\n".join(f"  {p}" for p in problems))


@dataclass(frozen=True)
class Listen:
    """Where requests come in: an inherited listening socket, or an address to bind."""

    fd: int | None = None
    host: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True)
class Config:
    """See contract.py for the meaning of each. Durations in seconds."""

    app: str
    function: str
    revision: str
    pool: str
    replica: str
    source: str
    bundle: str
    ticket_sha256: str
    listen: Listen
    environment: str = "main"
    workdir: str | None = None
    parameters: Mapping[str, Any] | None = None
    lifeline: int | None = None
    tied: bool = False
    """It ends with the process that started it."""
    network: str = "exclusive"
    web_ports: tuple[int, ...] = ()
    max_inputs: int = 1
    timeout: float = 300.0
    startup_timeout: float = 300.0
    grace_period: float = 30.0
    orphan_after: float = 0.0
    web_urls: Mapping[str, str] | None = None
    log_tags: bool = False
    gpus: int = 0
    image: str | None = None
    cgroups: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What answers under PREFIX carry: `<pool> <number>.<epoch>`."""
        return f"{self.pool} {self.replica}"


class _Reader:
    """Takes variables out of an environment and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def need(self, name: str, pattern: str = r"(?s).+", what: str = "a value") -> str:
        value = self.environ.get(name)
        if not value:
            self.problems.append(f"{name} is missing: it must be {what}")
        elif not re.fullmatch(pattern, value):
            self.problems.append(f"{name} is {value!r}: it must be {what}")
        return value or ""

    def get(self, name: str, convert: Callable[[str], T], default: D, what: str) -> T | D:
        value = self.environ.get(name)
        if not value:
            return default
        try:
            return convert(value)
        except (ValueError, KeyError, TypeError, binascii.Error):
            self.problems.append(f"{name} is {value!r}: it must be {what}")
            return default


def _whole(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise ValueError
    return int(value)


def _positive(value: str) -> int:
    number = _whole(value)
    if number < 1:
        raise ValueError
    return number


def _port(value: str) -> int:
    number = _whole(value)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number < 1e9:
        raise ValueError
    return number


def _fd(value: str) -> int:
    kind, _, number = value.partition(":")
    if kind != "fd":
        raise ValueError
    return _whole(number)


def _listen(value: str) -> Listen:
    kind, _, number = value.partition(":")
    if kind == "fd":
        return Listen(fd=_whole(number))
    if kind == "port":
        return Listen(port=_port(number))
    raise ValueError


def _network(value: str) -> str:
    if value not in NETWORKS:
        raise ValueError
    return value


def _parameters(value: str) -> dict[str, Any]:
    raw = json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
    if not isinstance(raw, dict):
        raise ValueError
    values: dict[str, Any] = {}
    for name, one in raw.items():
        if isinstance(one, dict):
            one = base64.b64decode(one["bytes"], validate=True)
        elif not isinstance(one, (str, int, bool)):
            raise ValueError
        values[name] = one
    return values


def _urls(value: str) -> dict[str, str]:
    urls = json.loads(value)
    if not isinstance(urls, dict) or not all(isinstance(url, str) for url in urls.values()):
        raise ValueError
    return urls


def _folders(value: str) -> tuple[str, ...]:
    folders = tuple(value.split("\n"))
    if not all(folder.startswith("/") for folder in folders):
        raise ValueError
    return folders


def _where_to_listen(read: _Reader) -> Listen:
    if read.environ.get(c.ENV_LISTEN):
        return read.get(c.ENV_LISTEN, _listen, Listen(), "fd:<number> or port:<1-65535>")
    if read.environ.get("NOMAD_PORT_http"):
        host = read.environ.get("NOMAD_IP_http") or "127.0.0.1"
        return Listen(host=host, port=read.get("NOMAD_PORT_http", _port, 0, "a port"))
    read.problems.append(
        f"{c.ENV_LISTEN} is missing (and so is NOMAD_PORT_http): it must be fd:<number> or port:<port>"
    )
    return Listen()


def read_config(environ: Mapping[str, str]) -> Config:
    """The configuration in `environ`.

    Raises:
        BadConfiguration: naming all that is missing or wrong.
    """
    read = _Reader(environ)
    version = read.need(c.ENV_CONTRACT, r"[0-9]+", "the number of the runner contract")
    if version.isdigit() and int(version) != c.VERSION:
        read.problems.append(f"{c.ENV_CONTRACT} is {version}: this runner speaks contract {c.VERSION}")
    timeout = read.get(c.ENV_TIMEOUT, _seconds, 300.0, "seconds")
    config = Config(
        app=read.need(c.ENV_APP, what="the App's name"),
        function=read.need(c.ENV_FUNCTION, what="the tag of a Function or Cls"),
        revision=read.need(c.ENV_REVISION, what="a revision id"),
        pool=read.need(c.ENV_POOL, r"[\x21-\x7e]+", "a pool's id"),
        replica=read.need(c.ENV_REPLICA, r"[0-9]+\.[0-9]+", "<number>.<epoch>"),
        source=read.need(c.ENV_SOURCE, r"(script|module):.+", "script:<file> or module:<dotted name>"),
        bundle=read.need(c.ENV_BUNDLE, r"/.*", "an absolute folder"),
        ticket_sha256=read.need(c.ENV_TICKET_SHA256, r"[0-9a-f]{64}", "a SHA-256 in lower-case hex"),
        listen=_where_to_listen(read),
        environment=environ.get(c.ENV_ENVIRONMENT) or "main",
        workdir=environ.get(c.ENV_WORKDIR) or None,
        parameters=read.get(c.ENV_PARAMETERS, _parameters, None, "base64url of a JSON object"),
        lifeline=read.get(c.ENV_LIFELINE, _fd, None, "fd:<number>"),
        tied=not environ.get(c.ENV_LISTEN) and not environ.get(c.ENV_LIFELINE),
        network=read.get(c.ENV_NETWORK, _network, "exclusive", " | ".join(NETWORKS)),
        web_ports=read.get(c.ENV_WEB_PORTS, lambda v: tuple(map(_port, v.split(","))), (), "ports, comma-separated"),
        max_inputs=read.get(c.ENV_MAX_INPUTS, _positive, 1, "a whole number from 1"),
        timeout=timeout,
        startup_timeout=read.get(c.ENV_STARTUP_TIMEOUT, _seconds, timeout, "seconds"),
        grace_period=read.get(c.ENV_GRACE_PERIOD, _seconds, 30.0, "seconds"),
        orphan_after=read.get(c.ENV_ORPHAN_AFTER, _seconds, 0.0, "seconds"),
        web_urls=read.get(c.ENV_WEB_URLS, _urls, None, "a JSON object of URLs"),
        log_tags=environ.get(c.ENV_LOG_TAGS) == "1",
        gpus=read.get(c.ENV_GPUS, _whole, 0, "a whole number"),
        image=environ.get(c.ENV_IMAGE) or None,
        cgroups=read.get(c.ENV_CGROUPS, _folders, (), "absolute folders, one a line"),
    )
    if read.problems:
        raise BadConfiguration(read.problems)
    return config
