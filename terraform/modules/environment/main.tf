# One environment: a namespace of Nomad, and a role of Vault by which its tasks, and nobody else, read its secrets.

module "names" {
  source = "../names"

  environments = [var.name]
  mount        = var.mount
  auth_mount   = var.auth_mount
}

locals {
  this = module.names.environments[var.name]
}

resource "vault_policy" "this" {
  name   = local.this.vault_policy.name
  policy = local.this.vault_policy.rules
}

resource "vault_jwt_auth_backend_role" "this" {
  backend                = var.auth_mount
  role_name              = local.this.vault_role.name
  role_type              = local.this.vault_role.role_type
  bound_audiences        = local.this.vault_role.bound_audiences
  bound_claims           = local.this.vault_role.bound_claims
  user_claim             = local.this.vault_role.user_claim
  claim_mappings         = local.this.vault_role.claim_mappings
  token_type             = local.this.vault_role.token_type
  token_period           = local.this.vault_role.token_period
  token_explicit_max_ttl = local.this.vault_role.token_explicit_max_ttl
  token_policies         = local.this.vault_role.token_policies
}

# Whose is a namespace of that name? The provider takes over whatever is there without a word, and would destroy it with the
# rest. So each plan asks Nomad, the first one too.
data "nomad_namespaces" "all" {}

data "nomad_namespace" "there" {
  count = contains(data.nomad_namespaces.all.namespaces, local.this.namespace.name) ? 1 : 0

  name = local.this.namespace.name
}

resource "nomad_namespace" "this" {
  name        = local.this.namespace.name
  description = local.this.namespace.description

  dynamic "capabilities" {
    for_each = var.task_drivers == null ? [] : [sort(var.task_drivers)]
    content {
      enabled_task_drivers = capabilities.value
    }
  }

  # Made last, so gone first: Nomad keeps a namespace that has jobs, and then they keep their role and their secrets too.
  depends_on = [vault_policy.this, vault_jwt_auth_backend_role.this]

  lifecycle {
    precondition {
      # Up to its comma or colon: what follows may be worded otherwise by the next release, or by hand.
      condition     = alltrue([for found in data.nomad_namespace.there : split(",", replace(found.description, ":", ","))[0] == split(",", local.this.namespace.description)[0]])
      error_message = "Nomad has a namespace ${local.this.namespace.name} already, which says of itself \"${join("", data.nomad_namespace.there[*].description)}\": it may be somebody else's. Take another name for this environment. If it is modalnomad's: nomad namespace apply -description \"${local.this.namespace.description}\" ${local.this.namespace.name}"
    }
  }
}
