output "policies" {
  description = "Names of the policies, for `consul acl token create -policy-name …`."
  value       = [for policy in consul_acl_policy.this : policy.name]
}

output "role" {
  description = "What routers log in to; null where they do not. The job of routers takes it from here: the reference is the order."
  value       = var.login ? consul_acl_role.this[0].name : null
  depends_on  = [consul_acl_binding_rule.this]
}

output "auth_method" {
  description = "What they log in with; null where they do not."
  value       = var.login ? consul_acl_binding_rule.this[0].auth_method : null
}
