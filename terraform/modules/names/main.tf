# What the platform is made of, from the data file that `modalnomad setup` reads too. Nothing is made here: no provider is
# needed, and everything can be tested without one.

terraform {
  required_version = ">= 1.11"
}

locals {
  facts = file("${path.module}/../../../modalnomad/hashicorp/setup/platform.json")

  placeholders = {
    mount              = var.mount
    auth_mount         = var.auth_mount
    prefix             = var.prefix
    jwks_url           = var.jwks_url
    router_namespace   = var.router_namespace
    consul_auth_method = var.consul_auth_method
  }

  # Values cannot end a JSON text: their variables allow no quotes and no backslashes.
  filled = replace(replace(replace(replace(replace(replace(local.facts,
    "$${mount}", local.placeholders.mount),
    "$${auth_mount}", local.placeholders.auth_mount),
    "$${prefix}", local.placeholders.prefix),
    "$${jwks_url}", local.placeholders.jwks_url),
    "$${router_namespace}", local.placeholders.router_namespace),
  "$${consul_auth_method}", local.placeholders.consul_auth_method)

  platform = jsondecode(local.filled)
  each     = { for name in var.environments : name => jsondecode(replace(local.filled, "$${environment}", name)) }

  # Names that must not be the same.
  own_in_vault          = concat(local.platform.vault_policies[*].name, [local.platform.router_job.vault_role.name])
  environments_in_vault = [local.platform.vault_role.name, local.platform.vault_environment_policy.name]

  nomad_policies = {
    for policy in local.platform.nomad_policies : policy.name => {
      name        = policy.name
      description = policy.description
      rules       = jsonencode(policy.rules)
    }
  }
}
