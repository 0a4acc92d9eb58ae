output "jwks_url" {
  description = "Where Vault, and Consul, read Nomad's keys. Known only when Nomad has answered: Vault asks there at once, and what it cannot reach leaves its login half made."
  value       = local.jwks_url
  depends_on  = [nomad_acl_policy.this]
}

output "policies" {
  description = "Names of the policies, for `nomad acl token create -policy …`."
  value       = [for policy in nomad_acl_policy.this : policy.name]
}

output "token_accessors" {
  description = "With `create_tokens`: accessors by policy."
  value       = { for name, token in nomad_acl_token.this : name => token.accessor_id }
}

output "token_secret_ids" {
  description = "With `create_tokens`: secret ids by policy."
  value       = { for name, token in nomad_acl_token.this : name => token.secret_id }
  sensitive   = true
}
