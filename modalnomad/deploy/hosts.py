"""Labels and host names of endpoints (design §4). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from modalnomad.model.errors import Problem
from modalnomad.model.ids import DEFAULT_ENVIRONMENT, LABEL, cut_label, default_label
from modalnomad.model.manifest import Endpoint, Function, Manifest

DEV_SUFFIX = "-dev"
HOST_LIMIT = 253
"""Characters a host name may have (RFC 1035, section 2.3.4)."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What host names of one environment are made from."""

    domain: str = "localhost"
    workspace: str = ""
    environment: str = DEFAULT_ENVIRONMENT

    @property
    def prefix(self) -> str:
        """`[<workspace>[-<environment>]--]`."""
        parts = [self.workspace] if self.workspace else []
        if self.environment != DEFAULT_ENVIRONMENT:
            parts.append(self.environment)
        return "-".join(parts) + "--" if parts else ""

    def host(self, label: str) -> str:
        """Lower-case, without a port. The left-most part obeys the 63 characters of DNS, prefix included."""
        return f"{cut_label(self.prefix + label)}.{self.domain.strip('.').lower()}"


@dataclass(frozen=True, slots=True)
class Named:
    """An endpoint with its label and all its hosts, the one shown first."""

    endpoint: Endpoint
    label: str
    hosts: tuple[str, ...]


def name_endpoints(
    manifest: Manifest, app: str, naming: Naming, *, ephemeral: bool
) -> tuple[tuple[Named, ...], tuple[Problem, ...]]:
    """Every endpoint of the App with its hosts, and every bad label, bad custom domain and clash within the App."""
    named: list[Named] = []
    problems: list[Problem] = []
    for function in manifest.functions:
        good, bad = name_function(function, app, naming, ephemeral=ephemeral)
        named += good
        problems += bad
    problems.extend(clashes((entry.endpoint.where, f"{app}/{entry.endpoint.name}", entry.hosts) for entry in named))
    return tuple(named), tuple(problems)


def name_function(
    function: Function, app: str, naming: Naming, *, ephemeral: bool
) -> tuple[tuple[Named, ...], tuple[Problem, ...]]:
    """The same for one function."""
    named: list[Named] = []
    problems: list[Problem] = []
    for endpoint in function.endpoints:
        label, problem = label_of(endpoint, app, ephemeral=ephemeral)
        if problem is not None:
            problems.append(problem)
            continue
        domains, bad = custom_domains(endpoint)
        problems.extend(bad)
        named.append(Named(endpoint, label, tuple(dict.fromkeys((naming.host(label), *domains)))))
    return tuple(named), tuple(problems)


def label_of(endpoint: Endpoint, app: str, *, ephemeral: bool) -> tuple[str, Problem | None]:
    """The label, cut to 63 characters, or what is wrong with the one given."""
    suffix = DEV_SUFFIX if ephemeral else ""
    where = endpoint.where or endpoint.name
    if endpoint.label is not None:
        if why := label_fault(endpoint.label):
            return "", Problem(where, f"label={endpoint.label!r} of {endpoint.name} {why}")
        return cut_label(endpoint.label + suffix), None
    label = default_label(app, endpoint.name.replace(".", "-"))
    if label_fault(label[:63].rstrip("-")):
        return "", Problem(where, f"no URL can be made from {app!r} and {endpoint.name!r}: give the endpoint a label=")
    return cut_label(label + suffix), None


def label_fault(label: str) -> str | None:
    """Why this is no label: a predicate for a sentence, or None."""
    if len(label) > 63:
        return f"has {len(label)} characters; at most 63 are allowed"
    if not LABEL.fullmatch(label):
        return "may hold only a-z, 0-9 and dashes, and must not start or end with a dash"
    if label.isdigit():
        return "must not be all digits"
    return None


def custom_domains(endpoint: Endpoint) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """The valid ones, lower-case, and what is wrong with the others."""
    good: list[str] = []
    problems: list[Problem] = []
    for domain in endpoint.custom_domains:
        host = domain.lower().rstrip(".")
        if why := domain_fault(host):
            problems.append(Problem(endpoint.where or endpoint.name, f"custom domain {domain!r} {why}"))
        else:
            good.append(host)
    return tuple(good), tuple(problems)


def domain_fault(host: str) -> str | None:
    """Why this is no host name of its own: a predicate for a sentence, or None."""
    if host.startswith("*."):
        return "is a wildcard; name each host"
    if "/" in host or ":" in host:
        return "must be a host name only, without scheme, port or path"
    if len(host) > HOST_LIMIT:
        return f"has {len(host)} characters; at most {HOST_LIMIT} are allowed"
    if "." not in host or not all(LABEL.fullmatch(part) for part in host.split(".")):
        return "is not a full host name such as api.example.com"
    if re.fullmatch(r"[0-9.]+", host):
        return "is an address; give a host name"
    return None


def clashes(entries: Iterable[tuple[str, str, tuple[str, ...]]]) -> tuple[Problem, ...]:
    """One problem for each host two endpoints share. Entries: where, `<app>/<endpoint>`, hosts."""
    owner: dict[str, str] = {}
    problems: list[Problem] = []
    for where, name, hosts in entries:
        for host in hosts:
            first = owner.setdefault(host, name)
            if first != name:
                problems.append(
                    Problem(
                        where or name,
                        f"{first} and {name} would share {host}: give one of them another label= or custom domain",
                    )
                )
    return tuple(problems)
