# Nomad: policies of those who deploy, of routers and of those who look. Namespaces come with their environments.

module "names" {
  source = "../names"
}

locals {
  jwks_url = coalesce(var.jwks_url, "${replace(var.nomad_address, "/\\/+$/", "")}${module.names.jwks_path}")
}

# Whose are policies of these names? The provider takes over whatever is there without a word.
data "nomad_acl_policies" "all" {}

resource "nomad_acl_policy" "this" {
  for_each = module.names.nomad_policies

  name        = each.value.name
  description = each.value.description
  rules_hcl   = each.value.rules

  lifecycle {
    precondition {
      # Up to its colon or comma: what follows may be worded otherwise by the next release.
      condition     = alltrue([for found in data.nomad_acl_policies.all.policies : split(":", replace(found.description, ",", ":"))[0] == split(":", each.value.description)[0] if found.name == each.value.name])
      error_message = "Nomad has a policy ${each.value.name} already that is not modalnomad's, by its description. Look at it: nomad acl policy info ${each.value.name}. When nobody needs it as it is: nomad acl policy delete ${each.value.name}, and apply again; tokens that name it then get the rights of the new one."
    }
  }
}

# The provider writes the whole configuration, and forgets it at `destroy`: it stays as it was.
resource "nomad_scheduler_config" "this" {
  count = var.manage_scheduler ? 1 : 0

  scheduler_algorithm             = var.scheduler_algorithm
  memory_oversubscription_enabled = true

  # All four, always: a key that is not there is written as false, and each plan shows it anew.
  preemption_config = {
    batch_scheduler_enabled    = var.preemption.batch
    service_scheduler_enabled  = var.preemption.service
    sysbatch_scheduler_enabled = var.preemption.sysbatch
    system_scheduler_enabled   = var.preemption.system
  }
}

# No expiry: the provider gives back "1h" as "1h0m0s", up to 2.6.1, and would make the tokens anew each time.
resource "nomad_acl_token" "this" {
  for_each = var.create_tokens ? module.names.nomad_policies : {}

  name     = each.value.name
  type     = "client"
  policies = [nomad_acl_policy.this[each.key].name]
}

check "no_secrets_in_state" {
  assert {
    condition     = !var.create_tokens
    error_message = "create_tokens is on: secret ids of tokens lie in the state, and in saved plans, as plain text. Encrypt where they are kept, or leave create_tokens out and run `nomad acl token create -policy …`."
  }
}
