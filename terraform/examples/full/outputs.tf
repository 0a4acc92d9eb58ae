output "settings" {
  description = "The settings file of those who deploy: `terraform output -raw settings > ~/.config/modalnomad/config.toml`."
  value       = module.names.settings_toml
}

output "addresses" {
  description = "Who is where: the servers, endpoints (with the routers' port unless something is in front of them), where nodes get code."
  value = {
    nomad     = var.nomad_address
    consul    = var.consul_address
    vault     = var.vault_address
    endpoints = "http://*.${var.domain}:${coalesce(var.router.port, 8700)}"
    artifacts = var.artifacts_url
  }
}

output "environments" {
  description = "By name: `namespace` of Nomad and `vault_role` of its tasks."
  value       = { for name, one in module.environment : name => { namespace = one.namespace, vault_role = one.vault_role } }
}

output "routers" {
  description = "The routers' job, and what it is in the servers: `job`, `nomad_policy`, `vault_role`, and their `service` in Consul."
  value       = module.router
}

output "jwks_url" {
  description = "Where Vault and Consul read the keys of Nomad's identities."
  value       = module.nomad.jwks_url
}

output "policies" {
  description = "Policies for people's tokens, by server."
  value = {
    nomad  = module.nomad.policies
    consul = module.consul.policies
    vault  = module.vault.policies
  }
}

output "next" {
  description = "What to do next: `terraform output -raw next`."
  value       = <<-END
    # For each who deploys, with management tokens (umask 077):
    nomad acl token create -type client -name ana -policy modalnomad-deployer -t '{{.SecretID}}' > deployer.nomad
    consul acl token create -description ana -policy-name modalnomad-deployer -format json | jq -r .SecretID > deployer.consul
    vault token create -orphan -period 24h -policy modalnomad-deployer -field token > deployer.vault
    # They have the settings, with the lines token_file naming these files:
    terraform output -raw settings > ~/.config/modalnomad/config.toml
    # And then:
    modalnomad doctor
    modalnomad deploy --env ${keys(var.environments)[0]} examples/hello.py
  END
}
