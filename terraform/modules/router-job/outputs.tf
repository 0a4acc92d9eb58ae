output "job" {
  description = "The routers' job in Nomad: `namespace`, `id`."
  value       = { namespace = nomad_job.this.namespace, id = nomad_job.this.id }
}

output "nomad_policy" {
  description = "Policy of Nomad that the job has."
  value       = nomad_acl_policy.this.name
}

output "vault_role" {
  description = "Role of Vault that the job logs in with."
  value       = vault_jwt_auth_backend_role.this.role_name
}

output "service" {
  description = "Name under which Consul knows the routers, port of requests."
  value       = local.router.name
}
