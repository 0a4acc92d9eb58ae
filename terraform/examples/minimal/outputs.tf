output "settings" {
  description = "The settings file of those who deploy: `terraform output -raw settings > ~/.config/modalnomad/config.toml`."
  value       = module.names.settings_toml
}

output "namespace" {
  description = "Namespace of Nomad in which replicas of the environment run."
  value       = module.environment.namespace
}

output "vault_role" {
  description = "Role of Vault that its tasks log in to."
  value       = module.environment.vault_role
}

output "router" {
  description = "The routers' job: `namespace` and `id`, for `nomad job status -namespace NAMESPACE ID`."
  value       = module.router.job
}

output "nomad_policies" {
  description = "Policies of Nomad, for `nomad acl token create -policy …`."
  value       = module.nomad.policies
}

output "vault_policies" {
  description = "Policies of Vault, for `vault token create -orphan -period 24h -policy …`."
  value       = module.vault.policies
}
