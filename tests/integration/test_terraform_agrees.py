"""Terraform and `modalnomad setup` make the same things: what module `names` hands to the others is what Python wants,
field by field, policies byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modalnomad.hashicorp.setup.platform import Policy, Wanted, platform, wanted
from modalnomad.model.errors import UserError
from modalnomad.settings import ConsulSettings, NomadSettings, Settings, VaultSettings
from tests.support.terraform import TERRAFORM, needs_terraform, run

NAMES = TERRAFORM / "modules" / "names"


@dataclass(frozen=True)
class Case:
    """The same wishes in both ways."""

    settings: Settings = field(default_factory=Settings)
    environments: tuple[str, ...] = ()
    namespace: str = "modalnomad"
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Of module `names`, beside `environments`."""


CASES = {
    "nothing given": Case(),
    "everything given": Case(
        Settings(
            nomad=NomadSettings(address="https://nomad.internal:4646/"),
            consul=ConsulSettings(prefix="teams/ml_1/modal", auth_method="nomad_jobs-2"),
            vault=VaultSettings(mount="kv/modal-2", auth_mount="nomad/jwt_1"),
        ),
        ("main", "staging", "0", "a-b-c", "e" * 63),
        "Platform-7",
        {
            "jwks_url": "https://nomad.internal:4646/.well-known/jwks.json",
            "prefix": "teams/ml_1/modal",
            "consul_auth_method": "nomad_jobs-2",
            "mount": "kv/modal-2",
            "auth_mount": "nomad/jwt_1",
            "router_namespace": "Platform-7",
        },
    ),
    "a URL with what JSON and HCL write in other ways": Case(
        Settings(vault=VaultSettings(jwks_url="http://[::1]:4646/a/<b>?c=d&e=%22f%22#ü")),
        ("main",),
        variables={"jwks_url": "http://[::1]:4646/a/<b>?c=d&e=%22f%22#ü"},
    ),
}


def outputs(variables: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """Of module `names`, after an apply of it alone."""
    given, state = data / "given.tfvars.json", f"-state={data / 'state'}"
    given.write_text(json.dumps(variables))
    for words in (("init",), ("apply", "-auto-approve", state, f"-var-file={given}")):
        done = run(NAMES, *words, "-no-color", data=data)
        assert done.returncode == 0, done.stderr
    found = json.loads(run(NAMES, "output", "-json", state, data=data).stdout)
    return {name: output["value"] for name, output in found.items()}


def policies(all_of_them: Iterable[Policy], *, described: bool) -> dict[str, dict[str, str]]:
    """Vault's have no description."""
    return {
        policy.name: {"name": policy.name, "rules": policy.text}
        | ({"description": policy.description} if described else {})
        for policy in all_of_them
    }


def expected(needed: Wanted, environments: Iterable[str]) -> dict[str, Any]:
    """What Python makes, in the shape of the outputs."""
    of_all = len(needed.vault_policies) - len(needed.namespaces)
    of_each = zip(
        environments, needed.namespaces.items(), needed.vault_policies[of_all:], needed.roles.items(), strict=True
    )
    router = needed.router
    assert router is not None
    (auth_policy,) = policies([router.nomad_policy], described=True).values()
    return {
        "nomad_policies": policies(needed.nomad_policies, described=True),
        "consul_policies": policies(needed.consul_policies, described=True),
        "vault_policies": policies(needed.vault_policies[:of_all], described=False),
        "vault_mount": {"path": needed.mount, **needed.mount_fields},
        "vault_auth": {
            "path": needed.auth_mount,
            "type": needed.auth_type,
            "description": needed.auth_description,
            "config": needed.auth_config,
        },
        "environments": {
            name: {
                "namespace": {"name": namespace, "description": description},
                "vault_policy": {"name": policy.name, "rules": policy.text},
                "vault_role": {"name": role, **fields},
            }
            for name, (namespace, description), policy, (role, fields) in of_each
        },
        "router": {
            "name": router.name,
            "namespace": {"name": router.namespace, "description": router.namespace_description},
            "nomad_policy": auth_policy,
            "vault_role": {"name": router.vault_role, **router.vault_role_fields},
            "consul_auth_method": router.consul_auth_method,
            "consul_role": router.consul_role,
            "consul_binding_rule": router.consul_binding_rule,
        },
        "platform_key": platform()["platform_key"],
        "jwks_path": platform()["jwks_path"],
    }


@needs_terraform
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_terraform_makes_what_setup_makes(case: Case, tmp_path: Path) -> None:
    found = outputs({"environments": case.environments, **case.variables}, tmp_path)
    needed = expected(wanted(case.settings, case.environments, case.namespace), case.environments)

    # The settings file is Terraform's alone; another test reads it.
    assert set(found) == {*needed, "settings_toml"}
    for name, value in needed.items():
        assert found[name] == value, name


@needs_terraform
@pytest.mark.parametrize(
    ("environments", "namespace"),
    [
        (("Main",), "modalnomad"),
        (("router",), "modalnomad"),
        (("deployer",), "modalnomad"),
        ((), "modalnomad-main"),
        ((), "a_b"),
        ((), ""),
    ],
)
def test_both_refuse_the_same_names(environments: tuple[str, ...], namespace: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        wanted(Settings(), environments, namespace)
    assert error.value.hint
    given = tmp_path / "given.tfvars.json"
    given.write_text(json.dumps({"environments": environments, "router_namespace": namespace}))
    assert run(NAMES, "init", data=tmp_path).returncode == 0
    refused = run(NAMES, "plan", "-no-color", f"-var-file={given}", f"-state={tmp_path / 'state'}", data=tmp_path)
    assert refused.returncode == 1
    assert "Invalid value for variable" in refused.stderr
