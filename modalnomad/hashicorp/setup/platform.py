"""What the platform needs in each server, from one data file that Terraform reads too. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, get_args

from modalnomad.model.errors import UserError
from modalnomad.model.secret_rules import check_environment
from modalnomad.render.cluster import NAMESPACE_PREFIX
from modalnomad.settings import Settings

FILE: Final = "platform.json"

ServerName = Literal["nomad", "vault", "consul"]
SERVERS: Final[tuple[ServerName, ...]] = get_args(ServerName)
"""In the order in which they are set up: Vault reads Nomad's keys."""
NAMESPACE: Final = re.compile(r"[a-zA-Z0-9-]{1,128}")
"""As Nomad takes names of namespaces."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`rules`: as JSON, which Nomad, Consul and Vault take for HCL. `why`: what each right is for."""

    name: str
    description: str
    rules: Mapping[str, Any]
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As it is sent: byte by byte what Terraform's `jsonencode` makes of it. So each takes what the other made for
        its own."""
        return json.dumps(self.rules, sort_keys=True, separators=(",", ":"))

    def same(self, text: str) -> bool:
        """Does this text say the same?"""
        try:
            return bool(json.loads(text) == self.rules)
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class RouterJob:
    """What routers need to run as a job of Nomad, without a token: each server knows them by the identity that Nomad
    signs for them."""

    name: str
    """Of the job."""
    namespace: str
    namespace_description: str
    nomad_policy: Policy
    """Given to no token: see `job_acl`."""
    vault_role: str
    vault_role_fields: Mapping[str, Any]
    consul_auth_method: Mapping[str, Any]
    """`name`, `type`, `description`, `config` (as Consul's API has it)."""
    consul_role: Mapping[str, Any]
    """`name`, `description`, `policies` (names)."""
    consul_binding_rule: Mapping[str, Any]
    """`description`, `bind_type`, `bind_name`, `selector`."""

    @property
    def job_acl(self) -> Mapping[str, str]:
        """Whose identities have `nomad_policy`, as Nomad's API has it."""
        return {"Namespace": self.namespace, "JobID": self.name}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Everything, with no placeholder left."""

    namespaces: Mapping[str, str]
    """Of environments: name → description."""
    nomad_policies: tuple[Policy, ...]
    consul_policies: tuple[Policy, ...]
    vault_policies: tuple[Policy, ...]
    """Of people and routers, then one of each environment's tasks."""
    mount: str
    mount_fields: Mapping[str, Any]
    """`type`, `options`, `description`."""
    auth_mount: str
    auth_type: str
    auth_description: str
    auth_config: Mapping[str, Any]
    roles: Mapping[str, Mapping[str, Any]]
    """Of environments: name → fields."""
    router: RouterJob | None = None
    """None: routers are no job of Nomad, or somebody else prepared it."""


@cache
def platform() -> Mapping[str, Any]:
    """The data file as it is."""
    found: Mapping[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text("utf-8"))
    return found


def wanted(settings: Settings, environments: Sequence[str], router_namespace: str | None = None) -> Wanted:
    """For these environments, and routers as a job in that namespace. Raises UserError for what is no name of one."""
    common = {
        "mount": settings.vault.mount,
        "auth_mount": settings.vault.auth_mount,
        "prefix": settings.consul.prefix,
        "jwks_url": jwks_url(settings),
        "consul_auth_method": settings.consul.auth_method,
    }
    base = filled(platform(), common)
    each = [filled(platform(), {**common, "environment": _free_name(name)}) for name in environments]
    roles = [dict(one["vault_role"]) for one in each]
    nomad_policies = tuple(Policy(**policy) for policy in base["nomad_policies"])
    router = None
    if router_namespace is not None:
        names = {**common, "router_namespace": check_router_namespace(router_namespace)}
        router = _router_job(filled(platform()["router_job"], names), nomad_policies)
    return Wanted(
        namespaces={one["namespace"]["name"]: one["namespace"]["description"] for one in each},
        nomad_policies=nomad_policies,
        consul_policies=tuple(Policy(**policy) for policy in base["consul_policies"]),
        vault_policies=(
            *(Policy(**policy) for policy in base["vault_policies"]),
            *(Policy(**one["vault_environment_policy"]) for one in each),
        ),
        mount=settings.vault.mount,
        mount_fields=base["vault_mount"],
        auth_mount=settings.vault.auth_mount,
        auth_type=base["vault_auth"]["type"],
        auth_description=base["vault_auth"]["description"],
        auth_config=base["vault_auth"]["config"],
        roles={role.pop("name"): role for role in roles},
        router=router,
    )


def _free_name(environment: str) -> str:
    """The same. Raises UserError: no name of one, or Vault would have one thing for it and for everybody."""
    facts = filled(platform(), {"environment": check_environment(environment)})
    taken = {policy["name"] for policy in facts["vault_policies"]} | {facts["router_job"]["vault_role"]["name"]}
    if facts["vault_environment_policy"]["name"] in taken or facts["vault_role"]["name"] in taken:
        raise UserError(
            f"no environment can have the name {environment!r}: {facts['vault_role']['name']} is a policy or role of "
            "the platform's own in Vault",
            "take another name",
        )
    return environment


def _router_job(facts: Mapping[str, Any], nomad_policies: Sequence[Policy]) -> RouterJob:
    policy, role = facts["nomad_policy"], dict(facts["vault_role"])
    (same,) = [one for one in nomad_policies if one.name == policy["rules_of"]]
    return RouterJob(
        name=facts["name"],
        namespace=facts["namespace"]["name"],
        namespace_description=facts["namespace"]["description"],
        nomad_policy=Policy(policy["name"], policy["description"], same.rules, same.why),
        vault_role=role.pop("name"),
        vault_role_fields=role,
        consul_auth_method=facts["consul_auth_method"],
        consul_role=facts["consul_role"],
        consul_binding_rule=facts["consul_binding_rule"],
    )


def check_router_namespace(name: str) -> str:
    """The same. Raises UserError."""
    if NAMESPACE.fullmatch(name) and not name.startswith(NAMESPACE_PREFIX):
        return name
    if name.startswith(NAMESPACE_PREFIX):
        raise UserError(
            f"routers cannot run in {name!r}: namespaces that begin with {NAMESPACE_PREFIX} are environments, and who "
            "deploys there could replace the routers",
            "take another one, such as modalnomad",
        )
    raise UserError(
        f"{name!r} is not the name of a namespace", "a name is 1 to 128 of a-z, A-Z, 0-9 and -, such as modalnomad"
    )


def jwks_url(settings: Settings) -> str:
    """Where Vault reads Nomad's public keys."""
    return settings.vault.jwks_url or settings.nomad.address.rstrip("/") + str(platform()["jwks_path"])


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
