output "name" {
  description = "For `modalnomad deploy --env …`, when the namespace is there."
  value       = var.name
  depends_on  = [nomad_namespace.this]
}

output "namespace" {
  description = "Namespace of Nomad in which its replicas run."
  value       = nomad_namespace.this.name
}

output "vault_role" {
  description = "Role of Vault that its tasks log in to."
  value       = vault_jwt_auth_backend_role.this.role_name
}
