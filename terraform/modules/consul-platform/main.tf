# Consul, where its ACLs are on: policies of those who deploy, of routers and of Nomad's agents; the login of routers that
# run as a job of Nomad. No token is made here: its secret would lie in the state.

module "names" {
  source = "../names"

  prefix             = var.prefix
  jwks_url           = var.jwks_url == null ? "http://127.0.0.1:4646" : var.jwks_url
  router_namespace   = var.router_namespace
  consul_auth_method = var.auth_method
}

locals {
  method = module.names.router.consul_auth_method
  make   = var.login && coalesce(var.create_auth_method, false)
}

# Consul refuses a second one of the same name.
resource "consul_acl_policy" "this" {
  for_each = module.names.consul_policies

  name        = each.value.name
  description = each.value.description
  rules       = each.value.rules
}

# Consul fetches the keys when this is written. It replaces one of the same name without asking. Written as `jsonencode`
# writes it: the provider compares the text.
resource "consul_acl_auth_method" "this" {
  count = local.make ? 1 : 0

  name        = local.method.name
  type        = local.method.type
  description = local.method.description
  config_json = jsonencode(merge(local.method.config, var.jwks_ca_pem == null ? {} : { JWKSCACert = var.jwks_ca_pem }))
}

data "consul_acl_auth_method" "there" {
  count = var.login && !local.make ? 1 : 0

  name = local.method.name

  lifecycle {
    postcondition {
      condition     = self.type == local.method.type && length(setintersection(try(jsondecode(self.config_json).BoundAudiences, []), local.method.config.BoundAudiences)) > 0
      error_message = "The auth method ${local.method.name} lets no identity of Nomad's tasks in: it is of type ${self.type}, for the audiences ${try(join(", ", jsondecode(self.config_json).BoundAudiences), "of nobody")}. Correct it (type ${local.method.type}, BoundAudiences with ${local.method.config.BoundAudiences[0]}), or name another one as auth_method and as task_auth_method of Nomad's agents."
    }

    postcondition {
      condition     = alltrue([for claim, name in local.method.config.ClaimMappings : try(jsondecode(self.config_json).ClaimMappings[claim], "") == name])
      error_message = "The auth method ${local.method.name} does not tell who a task is: its ClaimMappings have to hold ${join(", ", keys(local.method.config.ClaimMappings))}, each under its own name."
    }
  }
}

resource "consul_acl_role" "this" {
  count = var.login ? 1 : 0

  name        = module.names.router.consul_role.name
  description = module.names.router.consul_role.description
  policies    = [for name in module.names.router.consul_role.policies : consul_acl_policy.this[name].id]
}

resource "consul_acl_binding_rule" "this" {
  count = var.login ? 1 : 0

  auth_method = local.make ? consul_acl_auth_method.this[0].name : data.consul_acl_auth_method.there[0].name
  description = module.names.router.consul_binding_rule.description
  bind_type   = module.names.router.consul_binding_rule.bind_type
  bind_name   = module.names.router.consul_binding_rule.bind_name
  selector    = module.names.router.consul_binding_rule.selector

  # Who logs in while there is no such role gets nothing.
  depends_on = [consul_acl_role.this]
}
