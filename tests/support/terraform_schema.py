"""What the providers' plug-ins say they take: `tests/data/provider-schema.json`, and how it is made.

One line per argument, `"MARKS TYPE"`; blocks are `{"block": …, "max": …, "min": …}`, where `max` is left out for any
number. Marks: r required, o optional, c computed, s sensitive, w write-only, d deprecated. `scripts/provider-schema`
makes it anew from the plug-ins on the machine."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.support.repository import ROOT
from tests.support.terraform import PROVIDERS, plugins, run

FILE: Final = ROOT / "tests" / "data" / "provider-schema.json"
KEPT: Final[Mapping[str, tuple[str, ...]]] = {
    "resource": (
        "consul_acl_auth_method",
        "consul_acl_binding_rule",
        "consul_acl_policy",
        "consul_acl_role",
        "consul_acl_token",
        "consul_keys",
        "nomad_acl_auth_method",
        "nomad_acl_binding_rule",
        "nomad_acl_policy",
        "nomad_acl_role",
        "nomad_acl_token",
        "nomad_job",
        "nomad_namespace",
        "nomad_node_pool",
        "nomad_scheduler_config",
        "nomad_variable",
        "vault_approle_auth_backend_role_secret_id",
        "vault_generic_secret",
        "vault_jwt_auth_backend",
        "vault_jwt_auth_backend_role",
        "vault_kv_secret_v2",
        "vault_mount",
        "vault_policy",
        "vault_token",
    ),
    "data": (
        "consul_acl_auth_method",
        "consul_acl_policy",
        "consul_acl_role",
        "consul_acl_token_secret_id",
        "nomad_acl_policies",
        "nomad_acl_policy",
        "nomad_acl_token",
        "nomad_job",
        "nomad_jwks",
        "nomad_namespace",
        "nomad_namespaces",
        "nomad_scheduler_config",
        "nomad_variable",
        "vault_auth_backend",
        "vault_auth_backends",
        "vault_generic_secret",
        "vault_kv_secret_v2",
        "vault_policy_document",
    ),
    "ephemeral": ("nomad_acl_token", "nomad_variable", "vault_kv_secret_v2"),
}
"""What modules use, and what they must not use: its arguments are named in messages."""

KEPT_LOGINS: Final = {"auth_jwt", "auth_login_jwt", "auth_login_token_file"}
"""Of the blocks of providers: their many ways to log in are left out."""

ORIGINS: Final = {
    "resource": "resource_schemas",
    "data": "data_source_schemas",
    "ephemeral": "ephemeral_resource_schemas",
}
MARKS: Final = {
    "required": "r",
    "optional": "o",
    "computed": "c",
    "sensitive": "s",
    "write_only": "w",
    "deprecated": "d",
}


@functools.cache
def schema() -> dict[str, Any]:
    """Kept: kind (`provider`, `resource`, `data`, `ephemeral`) → name → arguments and blocks; `versions`."""
    found: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def split(argument: str) -> tuple[str, str]:
    """Marks and type."""
    marks, _, kind = argument.partition(" ")
    return marks, kind


def elements(kind: str) -> tuple[str, str]:
    """`"set(string)"` → `("set", "string")`; nothing within a plain type."""
    outer, _, inner = kind.partition("(")
    return outer, inner[:-1]


def fields(inner: str) -> dict[str, str]:
    """Of an object's type, as in `elements`: `"{a=string,b=list(string)}"` → name → type."""
    found, depth, start = {}, 0, 1
    for at, char in enumerate(inner):
        depth += char in "({"
        depth -= char in ")}"
        if (char == "," and depth == 1) or (at == len(inner) - 1 and at > start):
            name, _, kind = inner[start:at].partition("=")
            found[name] = kind
            start = at + 1
    return found


# --- how it is made ------------------------------------------------------------------------------------------


def made(folder: Path) -> str:
    """The file's text from the plug-ins; `folder` is empty and taken for Terraform's own files."""
    mirror = plugins()
    if mirror is None:
        raise SystemExit("no plug-ins of nomad, vault and consul found: set TF_CLI_CONFIG_FILE to a filesystem_mirror")
    needed = "\n".join(f'{name} = {{ source = "hashicorp/{name}" }}' for name in PROVIDERS)
    (folder / "main.tf").write_text(f"terraform {{\nrequired_providers {{\n{needed}\n}}\n}}\n", "utf-8")
    given = [
        run(folder, "init", f"-plugin-dir={mirror}"),
        run(folder, "version", "-json"),
        run(folder, "providers", "schema", "-json"),
    ]
    for result in given:
        if result.returncode:
            raise SystemExit(f"terraform failed: {result.stderr}")
    return trimmed(json.loads(given[2].stdout), json.loads(given[1].stdout))


def trimmed(whole: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    """From `terraform providers schema -json` and `terraform version -json`: what is kept, in a stable order."""
    versions = {address.rpartition("/")[2]: number for address, number in version["provider_selections"].items()}
    kept: dict[str, Any] = {"versions": versions | {"terraform": version["terraform_version"]}}
    providers = {address.rpartition("/")[2]: given for address, given in whole["provider_schemas"].items()}
    kept["provider"] = {name: _provider(given["provider"]["block"]) for name, given in providers.items()}
    for kind, names in KEPT.items():
        everything = {name: it for given in providers.values() for name, it in given.get(ORIGINS[kind], {}).items()}
        if missing := set(names) - set(everything):
            raise SystemExit(f"these plug-ins have no {kind} {', '.join(sorted(missing))}")
        kept[kind] = {name: _block(everything[name]["block"]) for name in names}
    return json.dumps(kept, indent=1, sort_keys=True) + "\n"


def _provider(block: Mapping[str, Any]) -> dict[str, Any]:
    blocks = {name: one for name, one in block.get("block_types", {}).items() if name in KEPT_LOGINS}
    return _block({**block, "block_types": blocks})


def _block(block: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {name: _argument(one) for name, one in block.get("attributes", {}).items()}
    for name, one in block.get("block_types", {}).items():
        limits = {key: one[f"{key}_items"] for key in ("min", "max") if f"{key}_items" in one}
        if one["nesting_mode"] in {"single", "group"}:
            limits.setdefault("max", 1)
        kept[name] = {"min": 0, **limits, "block": _block(one["block"])}
    return kept


def _argument(given: Mapping[str, Any]) -> str:
    marks = "".join(letter for word, letter in MARKS.items() if given.get(word))
    return f"{marks} {_nested(given['nested_type']) if 'nested_type' in given else _type(given['type'])}"


def _type(given: Any) -> str:
    if isinstance(given, str):
        return given
    outer, inner = given
    if outer == "object":
        return "object({" + ",".join(f"{name}={_type(one)}" for name, one in sorted(inner.items())) + "})"
    return f"{outer}({_type(inner)})"


def _nested(given: Mapping[str, Any]) -> str:
    inner = {name: split(_argument(one))[1] for name, one in sorted(given["attributes"].items())}
    one = "object({" + ",".join(f"{name}={kind}" for name, kind in inner.items()) + "})"
    return one if given["nesting_mode"] == "single" else f"{given['nesting_mode']}({one})"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        FILE.write_text(made(Path(temporary)), "utf-8")
    sys.stdout.write(f"{FILE.relative_to(ROOT)} is written\n")
