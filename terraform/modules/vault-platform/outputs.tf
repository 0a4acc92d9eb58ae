output "mount" {
  description = "Where the store lies. Environments and routers take it from here: the reference is the order."
  value       = var.create_mount ? vault_mount.this[0].path : var.mount
}

output "auth_mount" {
  description = "Where the login lies. Environments and routers take it from here: the reference is the order."
  value       = var.create_auth_mount ? vault_jwt_auth_backend.this[0].path : var.auth_mount
}

output "policies" {
  description = "Names of the policies, for `vault token create -policy …`."
  value       = [for policy in vault_policy.this : policy.name]
}
