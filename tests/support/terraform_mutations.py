"""Mistakes one at a time, each with exactly what the check says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

MODULES: Final = "terraform/modules"
ENVIRONMENT: Final = f"{MODULES}/environment/main.tf"
NOMAD: Final = f"{MODULES}/nomad-platform/main.tf"
VAULT: Final = f"{MODULES}/vault-platform/main.tf"
CONSUL: Final = f"{MODULES}/consul-platform/main.tf"
ROUTER: Final = f"{MODULES}/router-job/main.tf"
MINIMAL: Final = "terraform/examples/minimal/main.tf"


class Mutation(NamedTuple):
    """In `file`, what the pattern `old` finds first becomes `new`; `found`: a part of each finding, and no others."""

    name: str
    file: str
    old: str
    new: str
    found: tuple[str, ...]

    def apply(self, files: Mapping[str, str]) -> dict[str, str]:
        """The files with this one mistake."""
        text, times = re.subn(self.old, self.new, files[self.file], count=1, flags=re.MULTILINE | re.DOTALL)
        assert times == 1, f"{self.file} has nothing like {self.old!r} any more: write this mutation anew"
        return {**files, self.file: text}


def line(name: str) -> str:
    """A pattern for one argument's line."""
    return rf"^ *{name} += [^\n]*\n"


OF_LANGUAGE: Final = (
    Mutation("misspelt argument", ENVIRONMENT, "token_period ", "token_priod ", ("did you mean `token_period`?",)),
    Mutation(
        "missing argument",
        ENVIRONMENT,
        line("user_claim"),
        "",
        ("vault_jwt_auth_backend_role.this lacks `user_claim`",),
    ),
    Mutation(
        "argument within a dynamic block",
        ENVIRONMENT,
        "enabled_task",
        "enable_task",
        ("no argument `enable_task_drivers`",),
    ),
    Mutation("misspelt block", ROUTER, r"job_acl \{", "job_acls {", ("no block `job_acls`",)),
    Mutation(
        "block that is an argument",
        ROUTER,
        r"job_acl \{",
        "job_acl = {",
        ("`job_acl` of nomad_acl_policy.this is a block",),
    ),
    Mutation(
        "argument that is a block",
        VAULT,
        r"(^  options +)= [^\n]*",
        r'\1 { version = "2" }',
        ("`options` of vault_mount.this is an argument",),
    ),
    Mutation("one block allowed", ROUTER, r"  job_acl \{.*?\}\n", r"\g<0>\g<0>", ("`job_acl` 2 times",)),
    Mutation("dynamic block without content", ENVIRONMENT, "content {", "contents {", ("is incomplete",)),
    Mutation(
        "what the provider tells",
        VAULT,
        r"(vault_mount\" \"this\" \{\n)",
        r'\1  accessor = "a"\n',
        ("`accessor` of vault_mount.this is the provider's",),
    ),
    Mutation(
        "deprecated",
        ROUTER,
        r"^  rerun_if_dead",
        "  read_allocation_ids = true\n  rerun_if_dead",
        ("`read_allocation_ids` of nomad_job.this is deprecated",),
    ),
    Mutation(
        "text for yes or no",
        NOMAD,
        "memory_oversubscription_enabled = true",
        'memory_oversubscription_enabled = "yes"',
        ("is a string: write a bool",),
    ),
    Mutation(
        "default of another type",
        f"{MODULES}/nomad-platform/variables.tf",
        "(create_tokens.*?default +)= false",
        r"\1= [false]",
        ("the default of variable `create_tokens` is a list", "tokens are made unless one says no"),
    ),
    Mutation("argument twice", ENVIRONMENT, line("role_type"), r"\g<0>\g<0>", ("`role_type` is written twice",)),
    Mutation("unknown block", NOMAD, '^check "', 'checks "', ("no block `checks`", "no plan of")),
    Mutation(
        "unknown resource",
        VAULT,
        'resource "vault_policy"',
        'resource "vault_polices"',
        ("no resource `vault_polices`", "`vault_policy.this`: there is no", "`vault_policy.this[].name`: there is no"),
    ),
    Mutation(
        "unknown variable",
        ENVIRONMENT,
        r"sort\(var.task_drivers",
        "sort(var.task_driver",
        ("did you mean `task_drivers`?",),
    ),
    Mutation(
        "unknown local",
        ENVIRONMENT,
        "local.this.vault_policy.name",
        "local.that.vault_policy.name",
        ("`local.that.vault_policy.name`: no such local",),
    ),
    Mutation(
        "unknown output of a module",
        MINIMAL,
        "module.vault.policies",
        "module.vault.polices",
        ("did you mean `policies`?",),
    ),
    Mutation(
        "unknown output in a for",
        "terraform/examples/full/outputs.tf",
        "one.vault_role",
        "one.vault_rol",
        ("`module.environment[].vault_rol`",),
    ),
    Mutation(
        "unknown module",
        MINIMAL,
        "module.vault.policies",
        "module.vaults.policies",
        ("no such module is called", "does not wait for vault-platform"),
    ),
    Mutation(
        "unknown attribute",
        f"{MODULES}/environment/outputs.tf",
        "nomad_namespace.this.name",
        "nomad_namespace.this.nam",
        ("nomad_namespace has no such attribute",),
    ),
    Mutation(
        "unknown thing",
        f"{MODULES}/environment/outputs.tf",
        "nomad_namespace.this.name",
        "nomad_namespace.that.name",
        ("there is no such thing",),
    ),
    Mutation(
        "index forgotten",
        f"{MODULES}/vault-platform/outputs.tf",
        r"vault_mount.this\[0\]",
        "vault_mount.this",
        ("say which one by an index",),
    ),
    Mutation(
        "index of one thing",
        f"{MODULES}/environment/outputs.tf",
        "nomad_namespace.this.name",
        "nomad_namespace.this[0].name",
        ("leave the index out",),
    ),
    Mutation(
        "each without for_each",
        VAULT,
        r"^  for_each = module.names.vault_policies\n",
        "",
        ("`each.value.name`", "`each.value.rules`", "leave the index out"),
    ),
    Mutation(
        "variable nobody reads",
        f"{MODULES}/environment/variables.tf",
        r"\Z",
        '\nvariable "more" {\n  type        = string\n  default     = ""\n  description = "More."\n}\n',
        ("nothing reads variable `more`",),
    ),
    Mutation("local nobody reads", ENVIRONMENT, "^locals {", "locals {\n  more = 1", ("nothing reads local `more`",)),
    Mutation("call without what it needs", MINIMAL, line("name"), "", ("module `environment` lacks `name`",)),
    Mutation("call with too much", MINIMAL, "consul_login ", "consul_logins ", ("no variable `consul_logins`",)),
    Mutation("call with another type", MINIMAL, '"none"', "[]", ("`consul_login` of module `router` is a list",)),
    Mutation(
        "call with an unknown field",
        MINIMAL,
        "artifacts_url ",
        "artifact_url ",
        ("`settings.artifact_url` of module `names` is unknown there",),
    ),
    Mutation(
        "call of no module", MINIMAL, "modules/environment", "modules/enviroment", ("names no folder of modules",)
    ),
    Mutation(
        "no version of Terraform",
        f"{MODULES}/environment/versions.tf",
        line("required_version"),
        "",
        ("terraform lacks `required_version`",),
    ),
    Mutation(
        "no version of a provider",
        f"{MODULES}/environment/versions.tf",
        line("version"),
        "",
        ("lacks source or version",),
    ),
    Mutation(
        "provider not asked for",
        f"{MODULES}/environment/versions.tf",
        r"    vault = \{.*?\}\n",
        "",
        ("needs provider `vault`",),
    ),
    Mutation(
        "provider not used",
        f"{MODULES}/vault-platform/versions.tf",
        r"(    )vault( = \{.*?\}\n)",
        r'\g<0>    nomad = { source = "hashicorp/nomad", version = ">= 2.6" }\n',
        ("does not use provider `nomad`",),
    ),
    Mutation(
        "provider not set up", MINIMAL, r'provider "vault" \{.*?\n\}\n', "", ("does not set up provider `vault`",)
    ),
    Mutation("provider in a module", VAULT, r"\Z", '\nprovider "vault" {}\n', ("sets up a provider",)),
)

OF_OURS: Final = (
    Mutation(
        "variable without type", f"{MODULES}/environment/variables.tf", line("type"), "", ("var.name lacks `type`",)
    ),
    Mutation(
        "variable without description",
        f"{MODULES}/environment/variables.tf",
        line("description"),
        "",
        ("var.name lacks `description`",),
    ),
    Mutation(
        "description without full stop",
        f"{MODULES}/environment/variables.tf",
        r'\."$',
        '"',
        ("the description of variable `name` is no sentence",),
    ),
    Mutation(
        "message without full stop",
        f"{MODULES}/environment/variables.tf",
        r'\\"main\\"\."',
        r'\\"main\\""',
        ("a message of variable `name` is no sentence",),
    ),
    Mutation(
        "condition of nothing",
        f"{MODULES}/environment/variables.tf",
        r"can\(regex\([^\n]*",
        "true",
        ("a condition of variable `name` does not read it",),
    ),
    Mutation(
        "output without description",
        f"{MODULES}/environment/outputs.tf",
        line("description"),
        "",
        ("output.name lacks `description`",),
    ),
    Mutation(
        "secret output not marked",
        f"{MODULES}/nomad-platform/outputs.tf",
        line("sensitive"),
        "",
        ("nomad_acl_token.this[].secret_id, which is sensitive",),
    ),
    Mutation(
        "secret variable not marked",
        f"{MODULES}/router-job/variables.tf",
        line("ephemeral"),
        "",
        ("variable `consul_token` holds a secret",),
    ),
    Mutation(
        "no depends_on",
        ENVIRONMENT,
        line("depends_on"),
        "",
        ("could go after vault_jwt_auth_backend_role.this", "could go after vault_policy.this"),
    ),
    Mutation("half a depends_on", ENVIRONMENT, "vault_policy.this, ", "", ("could go after vault_policy.this",)),
    Mutation(
        "somebody else's namespace",
        ENVIRONMENT,
        r"    precondition \{.*?^    \}\n",
        "",
        ("nomad_namespace.this would take over",),
    ),
    Mutation(
        "token that expires",
        NOMAD,
        r'(resource "nomad_acl_token".*?)(\n\})',
        r'\1\n  expiration_ttl = "1h"\2',
        ("made anew at each apply",),
    ),
    Mutation("no prevent_destroy", VAULT, line("prevent_destroy"), "", ("can be destroyed with every secret in it",)),
    Mutation(
        "prevent_destroy off",
        VAULT,
        "prevent_destroy = true",
        "prevent_destroy = false",
        ("can be destroyed with every secret in it",),
    ),
    Mutation(
        "three keys of preemption",
        NOMAD,
        line("system_scheduler_enabled"),
        "",
        ("lacks system_scheduler_enabled",),
    ),
    Mutation(
        "no preemption",
        NOMAD,
        r"^  preemption_config = \{.*?\n  \}\n",
        "",
        ("lacks batch_scheduler_enabled, service", "nothing reads variable `preemption`"),
    ),
    Mutation(
        "tokens unasked",
        NOMAD,
        r"var.create_tokens \? module.names.nomad_policies : \{\}",
        "module.names.nomad_policies",
        ("puts a secret into the state unasked",),
    ),
    Mutation(
        "tokens without a warning",
        NOMAD,
        r'^check "no_secrets_in_state" \{.*?^\}\n',
        "",
        ("no plan of terraform/modules/nomad-platform warns",),
    ),
    Mutation(
        "tokens by default",
        f"{MODULES}/nomad-platform/variables.tf",
        "(create_tokens.*?default +)= false",
        r"\1= true",
        ("tokens are made unless one says no",),
    ),
    Mutation(
        "value of a Nomad variable in the state",
        ROUTER,
        "items_wo  ",
        "items  ",
        ("`items` of nomad_variable.consul_token lies in the state", "secret `items`"),
    ),
    Mutation(
        "binding rule without description",
        CONSUL,
        r'(resource "consul_acl_binding_rule".*?)^ *description +=[^\n]*\n',
        r"\1",
        ("has no description, and each plan",),
    ),
    Mutation(
        "job before its policy",
        ROUTER,
        r"(resource \"nomad_job\".*?)    nomad_acl_policy.this,\n",
        r"\1",
        ("may start before nomad_acl_policy.this",),
    ),
    Mutation("job that stays stopped", ROUTER, line("rerun_if_dead"), "", ("stays stopped",)),
    Mutation(
        "variable the jobspec does not know",
        ROUTER,
        "admin_port  ",
        "admin_ports  ",
        ("gives `admin_ports`, which router.nomad.hcl",),
    ),
    Mutation(
        "keys read before Nomad answers",
        MINIMAL,
        r"jwks_url = module.nomad.jwks_url",
        "jwks_url = var.jwks_url",
        ("`jwks_url` of module `vault` does not wait for nomad-platform",),
    ),
    Mutation(
        "environment before the login",
        MINIMAL,
        r"(module \"environment\".*?auth_mount += )[^\n]*",
        r'\1"jwt-nomad"',
        ("does not wait for vault-platform",),
    ),
    Mutation(
        "literal name",
        ENVIRONMENT,
        "= local.this.vault_policy.name",
        '= "modalnomad-${var.name}"',
        ("`name` of vault_policy.this names something",),
    ),
    Mutation(
        "literal claim",
        ENVIRONMENT,
        "= local.this.vault_role.bound_audiences",
        '= ["vault.io"]',
        ("`bound_audiences` of vault_jwt_auth_backend_role.this is written out",),
    ),
    Mutation(
        "literal policy",
        ENVIRONMENT,
        "= local.this.vault_policy.rules",
        "= jsonencode({})",
        ("`policy` of vault_policy.this is written out",),
    ),
    Mutation(
        "token of a provider written out",
        MINIMAL,
        r'(provider "nomad" \{\n)',
        r'\1  secret_id = "a"\n',
        ("secret `secret_id` of provider.nomad is written out",),
    ),
)

OF_PATHS: Final = (
    Mutation(
        "through a local",
        ENVIRONMENT,
        "this.vault_role.token_period",
        "this.vault_role.token_priod",
        ("did you mean `token_period`?",),
    ),
    Mutation(
        "by for_each",
        VAULT,
        "each.value.rules",
        "each.value.rule",
        ("module `names` gives no `rule` there: did you mean `rules`?",),
    ),
    Mutation(
        "by for_each with a condition",
        NOMAD,
        r"(nomad_acl_token.*?)each.value.name",
        r"\1each.value.nme",
        ("did you mean `name`?",),
    ),
    Mutation(
        "at once", VAULT, "vault_auth.config.jwks_url", "vault_auth.configs.jwks_url", ("did you mean `config`?",)
    ),
    Mutation(
        "further than there is",
        ROUTER,
        "local.router.namespace.name",
        "local.router.namespace.name.text",
        ("gives no `text` there",),
    ),
    Mutation(
        "within a for",
        ENVIRONMENT,
        r"\[0\] == split\(\",\", local.this.namespace.description",
        '[0] == split(",", local.this.namespace.descr',
        ("did you mean `description`?",),
    ),
)
"""Paths into what module `names` gives."""
