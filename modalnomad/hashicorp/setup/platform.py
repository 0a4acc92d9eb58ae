"""What the platform needs in each server, from one data file that Terraform reads too. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, get_args

from modalnomad.model.secret_rules import check_environment
from modalnomad.settings import Settings

FILE: Final = "platform.json"
JWKS_PATH: Final = "/.well-known/jwks.json"
"""Where Nomad's agents show the keys they sign identities with."""

ServerName = Literal["nomad", "vault", "consul"]
SERVERS: Final[tuple[ServerName, ...]] = get_args(ServerName)
"""In the order in which they are set up: Vault reads Nomad's keys."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`rules`: as JSON, which Nomad, Consul and Vault take for HCL. `why`: what each right is for."""

    name: str
    description: str
    rules: Mapping[str, Any]
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As it is sent."""
        return json.dumps(self.rules, indent=2)

    def same(self, text: str) -> bool:
        """Does this text say the same?"""
        try:
            return bool(json.loads(text) == self.rules)
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Wanted:
    """Everything, with no placeholder left."""

    namespaces: Mapping[str, str]
    """Name → description."""
    nomad_policies: tuple[Policy, ...]
    consul_policies: tuple[Policy, ...]
    vault_policies: tuple[Policy, ...]
    """Of people and routers, then one of each environment's tasks."""
    mount: str
    auth_mount: str
    auth_type: str
    auth_description: str
    auth_config: Mapping[str, Any]
    roles: Mapping[str, Mapping[str, Any]]
    """Name → fields."""


@cache
def platform() -> Mapping[str, Any]:
    """The data file as it is."""
    found: Mapping[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text("utf-8"))
    return found


def wanted(settings: Settings, environments: Sequence[str]) -> Wanted:
    """For these environments. Raises UserError for what is no name of one."""
    common = {
        "mount": settings.vault.mount,
        "auth_mount": settings.vault.auth_mount,
        "prefix": settings.consul.prefix,
        "jwks_url": jwks_url(settings),
    }
    base = filled(platform(), common)
    each = [filled(platform(), {**common, "environment": check_environment(name)}) for name in environments]
    roles = [dict(one["vault_role"]) for one in each]
    return Wanted(
        namespaces={one["namespace"]["name"]: one["namespace"]["description"] for one in each},
        nomad_policies=tuple(Policy(**policy) for policy in base["nomad_policies"]),
        consul_policies=tuple(Policy(**policy) for policy in base["consul_policies"]),
        vault_policies=(
            *(Policy(**policy) for policy in base["vault_policies"]),
            *(Policy(**one["vault_environment_policy"]) for one in each),
        ),
        mount=settings.vault.mount,
        auth_mount=settings.vault.auth_mount,
        auth_type=base["vault_auth"]["type"],
        auth_description=base["vault_auth"]["description"],
        auth_config=base["vault_auth"]["config"],
        roles={role.pop("name"): role for role in roles},
    )


def jwks_url(settings: Settings) -> str:
    """Where Vault reads Nomad's public keys."""
    return settings.vault.jwks_url or settings.nomad.address.rstrip("/") + JWKS_PATH


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """The same with `${name}` replaced in every text and key; unknown ones stay."""
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("${" + name + "}", text)
        return value
    if isinstance(value, list):
        return [filled(item, names) for item in value]
    if isinstance(value, dict):
        return {filled(key, names): filled(item, names) for key, item in value.items()}
    return value
