"""Terraform's files, without any provider: checked against what the providers take, and against rules of our own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.hcl import HclError, parse
from tests.support.repository import ROOT, shown
from tests.support.terraform import TERRAFORM, mirrors, needs_terraform, plugins_given, run
from tests.support.terraform_check.arguments import mismatches
from tests.support.terraform_check.check import check
from tests.support.terraform_check.model import modules, texts
from tests.support.terraform_check.paths import astray, outputs_of_names
from tests.support.terraform_check.shape import type_of
from tests.support.terraform_docs import pages as readmes
from tests.support.terraform_mutations.language import OF_LANGUAGE
from tests.support.terraform_mutations.mutation import Mutation
from tests.support.terraform_mutations.ours import OF_OURS, OF_PATHS
from tests.support.terraform_schema import FILE, made, schema

TESTED = sorted({path.parent.parent for path in TERRAFORM.rglob("*.tftest.hcl")})
VERSIONS = 'terraform {\n  required_version = ">= 1.11"\n  required_providers {\n%s  }\n}\n'


def found(files: dict[str, str]) -> list[str]:
    return [str(finding) for finding in check(files, schema())]


def alone(text: str) -> list[str]:
    """What is said of a module of which this is all."""
    needed = [name for name in ("nomad", "vault", "consul") if f' "{name}_' in text]
    providers = "".join(f'    {name} = {{ source = "hashicorp/{name}", version = ">= 2.0" }}\n' for name in needed)
    return found({"terraform/modules/x/versions.tf": VERSIONS % providers, "terraform/modules/x/main.tf": text})


def test_every_file_is_right() -> None:
    files = texts()

    assert len(files) > 15
    assert not found(files)


@pytest.mark.parametrize("mutation", [*OF_LANGUAGE, *OF_OURS], ids=lambda mutation: mutation.name)
def test_each_mistake_is_found_and_nothing_else_is(mutation: Mutation) -> None:
    before = texts()
    told = list((Counter(found(mutation.apply(before))) - Counter(found(before))).elements())

    assert len(told) == len(mutation.found), told
    for part in mutation.found:
        assert any(part in one for one in told), (part, told)
    assert all(one.startswith("terraform/") and one.split(":")[1].isdigit() for one in told)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            'locals {\n  a = local.b\n  b = [local.a]\n}\noutput "c" {\n  description = "C."\n  value = local.a\n}\n',
            "main.tf:2: local.a waits for itself",
        ),
        (
            'resource "vault_kv_secret_v2" "a" {\n  mount = "kv"\n  name = "a"\n  data_json_wo = "{}"\n}\n',
            "main.tf:4: secret `data_json_wo` of vault_kv_secret_v2.a is written out",
        ),
        (
            'resource "vault_kv_secret_v2" "a" {\n  mount     = "kv"\n  name      = "a"\n  data_json = "{}"\n}\n',
            "main.tf:4: `data_json` of vault_kv_secret_v2.a lies in the state: write `data_json_wo`",
        ),
        (
            'data "vault_kv_secret_v2" "a" {\n  mount = "kv"\n  name  = "a"\n}\n',
            "data.vault_kv_secret_v2.a is not to be used",
        ),
        ('resource "consul_keys" "a" {}\n', "consul_keys.a is not to be used"),
        (
            'resource "nomad_acl_binding_rule" "a" {\n  auth_method = "a"\n  bind_type   = "management"\n}\n',
            "nomad_acl_binding_rule.a has no description",
        ),
        ('resource "vault_token" "a" {}\n', "vault_token.a puts a secret into the state unasked"),
        (
            'resource "vault_jwt_auth_backend" "a" {\n  path = each.key\n  tune {\n    max_lease = "1h"\n  }\n}\n',
            "vault_jwt_auth_backend.a.tune has no argument `max_lease`: did you mean `max_lease_ttl`?",
        ),
        ('module "a" {\n  source = each.key\n}\n', "main.tf:1: module `a` names no folder of modules"),
        (
            'variable "a" {\n  type        = object({ b = string, c = optional(string) })\n  default     = {}\n'
            '  description = "A."\n}\n',
            "main.tf:3: the default of variable `a`.b is missing",
        ),
        ('check "a" {}\n', "check.a lacks a block `assert`"),
        (
            'check "a" {\n  data "nomad_namespace" "b" {\n    nam = "c"\n  }\n}\n',
            "main.tf:3: data.nomad_namespace.b has no argument `nam`: did you mean `name`?",
        ),
        ('output "a" {\n  description = "A."\n  value       = path.modul\n}\n', "`path` has no `modul`"),
        (
            'resource "nomad_job" "a" {\n  jobspec = file("b")\n}\n',
            "nomad_job.a has no jobspec of this checkout: name its file",
        ),
        (
            'output "a" {\n  description = "A."\n  value       = <<-END\n    one\n    ${var.b}\n  END\n}\n',
            "main.tf:5: `var.b`",
        ),
    ],
)
def test_mistakes_that_no_module_could_make_yet(text: str, part: str) -> None:
    assert any(part in one for one in alone(text)), alone(text)


def test_a_module_without_versions() -> None:
    assert found({"terraform/modules/x/main.tf": "locals {}\n"}) == [
        "terraform/modules/x/main.tf:1: terraform/modules/x says no version: write `terraform { required_version = … }`"
    ]


def test_attributes_may_be_written_as_blocks_where_the_provider_takes_both() -> None:
    text = """
resource "vault_jwt_auth_backend" "a" {
  tune {
    max_lease_ttl = "1h"
  }
}
"""

    assert not [one for one in alone(text) if "tune" in one]


def test_a_dynamic_block_may_name_what_it_goes_through() -> None:
    text = """
resource "nomad_acl_role" "a" {
  name = path.module
  dynamic "policy" {
    for_each = toset([path.module])
    iterator = each_one
    content {
      name = each_one.value
    }
  }
}
"""

    assert not alone(text)


def test_what_is_no_hcl_is_told_with_its_line() -> None:
    with pytest.raises(HclError, match=r"terraform/modules/x/main.tf: line 2"):
        alone("locals {\n  a = = 1\n}\n")


def test_names_that_a_template_brings_are_nobody_elses() -> None:
    text = """
a = "%{ for i, x in var.v ~}${i}=${x.y} ${local.a}%{ endfor }"
b = <<-END
  %{ for k, x in local.m ~}
  ${jsonencode({ k = k, "}" = x.z })}
  %{ endfor ~}
  %{ if var.w }$${var.none} %%{ if var.none }%{ else }"${upper("{")}%{ endif }
END
c = [for x in local.n : trimspace(<<END
${x.q} ${
  local.o
}
END
)]
"""
    told = [(str(reference), reference.line) for reference in parse(text).references()]

    assert told == [
        *(("var.v", 2), ("var.v[].y", 2), ("local.a", 2)),
        *(("local.m", 4), ("local.m[].z", 5), ("var.w", 7)),
        *(("local.n", 9), ("local.n[].q", 10), ("local.o", 11)),
    ]


def test_a_heredoc_says_what_is_between_its_marks() -> None:
    values = parse("a = <<-END\n    one\n      two\n  END\nb = <<END\n one\nEND\n").arguments

    assert (values["a"].literal, values["b"].literal) == ("one\n  two\n", " one\n")


def test_references_are_found_wherever_they_are_written() -> None:
    text = """
a = { for name, one in module.m : name => one.x if one.y != var.z }
b = "${local.one} $${local.none} %{ if var.two }%{ endif }"
c = data.t.n[each.key].list[*].name
d = [for a in var.list : upper(a)]
e = { key = 1, (var.key) = 2 }
f = try(local.a["x"].b, null)
"""
    told = [str(reference) for reference in parse(text).references()]

    assert told == [
        *("module.m", "module.m[].x", "module.m[].y", "var.z"),
        *("local.one", "var.two"),
        *("data.t.n[].list[*].name", "each.key"),
        *("var.list", "var.list[]"),
        "var.key",
        "local.a[].b",
    ]


def test_plug_ins_are_looked_for_where_a_users_own_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "terraformrc"
    file.write_text(
        'provider_installation {\n  dev_overrides {\n    "hashicorp/nomad" = "/none"\n  }\n'
        f'  filesystem_mirror {{\n    include = ["*/*/*"]\n    path    = "{tmp_path}/mirror"\n  }}\n  direct {{}}\n}}\n'
    )
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(file))

    assert next(mirrors()) == tmp_path / "mirror"


EXAMPLE_VALUES = sorted(TERRAFORM.rglob("*.tfvars.example"))


@pytest.mark.parametrize("file", EXAMPLE_VALUES, ids=shown)
def test_example_values_are_of_variables_that_there_are(file: Path) -> None:
    variables = modules(texts())[shown(file.parent)].variables
    written = parse(file.read_text("utf-8")).arguments

    assert not written.keys() - variables.keys()
    assert not {name for name, one in variables.items() if "default" not in one.block.arguments} - written.keys()
    for name, value in written.items():
        assert not list(mismatches(value, type_of(variables[name].block.arguments["type"]))), name


@needs_terraform
def test_every_name_is_one_that_module_names_gives(tmp_path: Path) -> None:
    """No provider is needed to see what it gives: a path misspelt in another module is found before any plan."""
    given, before = outputs_of_names(tmp_path), texts()

    assert not [str(finding) for finding in astray(before, given, schema())]
    for mutation in OF_PATHS:
        told = [str(finding) for finding in astray(mutation.apply(before), given, schema())]
        assert len(told) == len(mutation.found), (mutation.name, told)
        assert all(part in one for part, one in zip(mutation.found, told, strict=True)), (mutation.name, told)


def test_readmes_are_what_scripts_docs_writes() -> None:
    written = {shown(path): path.read_text("utf-8") for path in TERRAFORM.glob("*/*/README.md")}
    made_now = readmes()

    stale = sorted(name for name in written.keys() | made_now.keys() if written.get(name) != made_now.get(name))
    assert not stale, "run scripts/docs"


@needs_terraform
def test_files_are_formatted() -> None:
    result = run(TERRAFORM, "fmt", "-check", "-recursive", "-diff")

    assert result.returncode == 0, f"run terraform fmt -recursive terraform\n{result.stdout}{result.stderr}"


@needs_terraform
@pytest.mark.parametrize("folder", [path for path in TESTED if path.name == "names"], ids=lambda path: path.name)
def test_terraforms_own_tests_of_what_needs_no_provider(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "test", data=tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 passed" not in result.stdout


def test_the_schema_is_what_the_plug_ins_say(tmp_path: Path) -> None:
    plugins_given()

    assert FILE.read_text("utf-8") == made(tmp_path), (
        f"run scripts/provider-schema, and look at {FILE.relative_to(ROOT)}"
    )
