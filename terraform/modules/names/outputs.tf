output "nomad_policies" {
  description = "Policies of Nomad by name: `name`, `description`, `rules` (text)."
  value       = local.nomad_policies
}

output "vault_policies" {
  description = "Policies of Vault by name, without those of environments: `name`, `rules` (text)."
  value       = { for policy in local.platform.vault_policies : policy.name => { name = policy.name, rules = jsonencode(policy.rules) } }
}

output "consul_policies" {
  description = "Policies of Consul by name: `name`, `description`, `rules` (text)."
  value = {
    for policy in local.platform.consul_policies : policy.name => {
      name        = policy.name
      description = policy.description
      rules       = jsonencode(policy.rules)
    }
  }
}

output "vault_mount" {
  description = "The store of secrets: `path`, `type`, `options`, `description`."
  value       = merge(local.platform.vault_mount, { path = var.mount })
}

output "vault_auth" {
  description = "The login by Nomad's identities: `path`, `type`, `description`, `config`."
  value       = merge(local.platform.vault_auth, { path = var.auth_mount })
}

output "environments" {
  description = "By name of the environment: `namespace` (`name`, `description`), `vault_policy` (`name`, `rules`), `vault_role` (as Vault has it)."
  value = {
    for name, one in local.each : name => {
      namespace    = one.namespace
      vault_policy = { name = one.vault_environment_policy.name, rules = jsonencode(one.vault_environment_policy.rules) }
      vault_role   = one.vault_role
    }
  }
}

output "router" {
  description = "The routers' job: `name`, `namespace`, `nomad_policy` (`name`, `description`, `rules`), `vault_role`, `consul_auth_method`, `consul_role`, `consul_binding_rule`."
  value = merge(local.platform.router_job, {
    nomad_policy = {
      name        = local.platform.router_job.nomad_policy.name
      description = local.platform.router_job.nomad_policy.description
      rules       = local.nomad_policies[local.platform.router_job.nomad_policy.rules_of].rules
    }
  })
}

output "platform_key" {
  description = "Path of the platform's key below the mount. Its value never passes through Terraform: the first router makes it."
  value       = local.platform.platform_key
}

output "jwks_path" {
  description = "Where Nomad's agents show the public keys that they sign identities with, below their address."
  value       = local.platform.jwks_path
}

output "settings_toml" {
  description = "The settings file of those who deploy, ready to copy; the lines that name files of tokens are comments."
  value       = local.settings_toml
}
