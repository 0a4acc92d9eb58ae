# Vault or OpenBao: the store of secrets, the login by Nomad's identities, policies of those who deploy and of routers. The
# platform's key is no part of it: the first router writes it, and its value passes through nobody's state.

module "names" {
  source = "../names"

  mount      = var.mount
  auth_mount = var.auth_mount
  jwks_url   = var.jwks_url
}

resource "vault_mount" "this" {
  count = var.create_mount ? 1 : 0

  path        = module.names.vault_mount.path
  type        = module.names.vault_mount.type
  options     = module.names.vault_mount.options
  description = module.names.vault_mount.description

  # Its end would be that of every secret.
  lifecycle {
    prevent_destroy = true
  }
}

# Vault fetches the keys when this is written. Where it cannot, it leaves a mount without a configuration, which Terraform
# then neither sees nor replaces: `vault auth disable <auth_mount>` and apply again.
resource "vault_jwt_auth_backend" "this" {
  count = var.create_auth_mount ? 1 : 0

  path               = module.names.vault_auth.path
  type               = module.names.vault_auth.type
  description        = module.names.vault_auth.description
  jwks_url           = module.names.vault_auth.config.jwks_url
  jwks_ca_pem        = var.jwks_ca_pem
  jwt_supported_algs = module.names.vault_auth.config.jwt_supported_algs

  # The provider does not read it back: after an import it would be written once more.
  lifecycle {
    ignore_changes = [description]
  }
}

# Without `allow_overwrite = false`, which would refuse what is there: it is deprecated, and warns in each plan.
resource "vault_policy" "this" {
  for_each = module.names.vault_policies

  name   = each.value.name
  policy = each.value.rules
}
