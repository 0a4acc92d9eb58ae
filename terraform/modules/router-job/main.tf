# Routers as a Nomad job, under their own workload identity: the very jobspec that `nomad job run` takes, what its identity
# may do in Nomad, and its login to Vault. That to Consul is made by module consul-platform.

module "names" {
  source = "../names"

  mount            = var.mount
  auth_mount       = var.auth_mount
  prefix           = var.prefix
  router_namespace = var.namespace
}

locals {
  router = module.names.router
  role   = local.router.vault_role

  env = merge(
    {
      MODALNOMAD_VAULT__MOUNT      = var.mount
      MODALNOMAD_VAULT__AUTH_MOUNT = var.auth_mount
      MODALNOMAD_CONSUL__PREFIX    = var.prefix
    },
    var.consul_auth_method == null ? {} : { MODALNOMAD_CONSUL__AUTH_METHOD = var.consul_auth_method },
    var.env,
  )

  # What is null has the jobspec's own default. Lists and maps are written as HCL, which JSON is but for what HCL would fill
  # in: `${attr.…}` is for Nomad to fill in, on the node.
  escaped = replace(replace(jsonencode(local.env), "$${", join("", ["$", "$${"])), "%%{", join("", ["%", "%%{"]))
  given = {
    namespace       = local.router.namespace.name
    datacenters     = var.datacenters == null ? null : jsonencode(var.datacenters)
    node_pool       = var.node_pool
    instances       = var.instances
    command         = var.command
    user            = var.user
    uid             = var.uid
    domain          = var.domain
    port            = var.port
    admin_port      = var.admin_port
    artifacts_port  = var.artifacts_port
    artifacts_store = var.artifacts_store
    vault_address   = var.vault_address
    nomad_address   = var.nomad_address
    consul_address  = var.consul_address
    consul_login    = var.consul_login
    env             = local.escaped
    identity_ttl    = var.identity_ttl
    cpu             = var.cpu
    memory          = var.memory
    memory_max      = var.memory_max
  }
}

# Whose are a namespace and a policy of these names? The provider takes over whatever is there without a word.
data "nomad_namespaces" "all" {
  count = var.create_namespace ? 1 : 0
}

data "nomad_namespace" "there" {
  count = var.create_namespace && contains(flatten(data.nomad_namespaces.all[*].namespaces), local.router.namespace.name) ? 1 : 0

  name = local.router.namespace.name
}

data "nomad_acl_policies" "all" {}

resource "nomad_namespace" "this" {
  count = var.create_namespace ? 1 : 0

  name        = local.router.namespace.name
  description = local.router.namespace.description

  # Gone before these: whatever runs in it keeps its rights to the end.
  depends_on = [nomad_acl_policy.this, vault_jwt_auth_backend_role.this]

  lifecycle {
    precondition {
      # Up to its colon or comma: what follows may be worded otherwise by the next release, or by hand.
      condition     = alltrue([for found in data.nomad_namespace.there : split(":", replace(found.description, ",", ":"))[0] == split(":", local.router.namespace.description)[0]])
      error_message = "Nomad has a namespace ${local.router.namespace.name} already, which says of itself \"${join("", data.nomad_namespace.there[*].description)}\": it may be somebody else's. Write another `namespace`, or `create_namespace = false` to run routers in that one. If it is modalnomad's: nomad namespace apply -description \"${local.router.namespace.description}\" ${local.router.namespace.name}"
    }
  }
}

resource "nomad_acl_policy" "this" {
  name        = local.router.nomad_policy.name
  description = local.router.nomad_policy.description
  rules_hcl   = local.router.nomad_policy.rules

  # Given to no token: to this job alone.
  job_acl {
    namespace = local.router.namespace.name
    job_id    = local.router.name
  }

  lifecycle {
    precondition {
      condition     = alltrue([for found in data.nomad_acl_policies.all.policies : split(":", replace(found.description, ",", ":"))[0] == split(":", local.router.nomad_policy.description)[0] if found.name == local.router.nomad_policy.name])
      error_message = "Nomad has a policy ${local.router.nomad_policy.name} already that is not modalnomad's, by its description. Look at it: nomad acl policy info ${local.router.nomad_policy.name}. When nobody needs it as it is: nomad acl policy delete ${local.router.nomad_policy.name}, and apply again."
    }
  }
}

resource "vault_jwt_auth_backend_role" "this" {
  backend                = var.auth_mount
  role_name              = local.role.name
  role_type              = local.role.role_type
  bound_audiences        = local.role.bound_audiences
  bound_claims           = local.role.bound_claims
  user_claim             = local.role.user_claim
  claim_mappings         = local.role.claim_mappings
  token_type             = local.role.token_type
  token_period           = local.role.token_period
  token_explicit_max_ttl = local.role.token_explicit_max_ttl
  token_policies         = local.role.token_policies
}

# Only this job reads it, and no state has it: the value is write-only.
resource "nomad_variable" "consul_token" {
  count = var.consul_login == "variable" && var.consul_token_version != null ? 1 : 0

  namespace = local.router.namespace.name
  path      = "nomad/jobs/${local.router.name}"

  # A higher version without a token: Nomad refuses `null`, and the token that is there stays. It would take an empty one.
  items_wo         = jsonencode(var.consul_token == null ? null : { consul_token = var.consul_token })
  items_wo_version = var.consul_token_version

  depends_on = [nomad_namespace.this]
}

resource "nomad_job" "this" {
  # The file, and nothing more. What follows it is empty, but not known before all variables are: a plan in which one still
  # has to be made (a bucket) would else parse the file without it, and fail.
  jobspec = join("", [file("${path.module}/../../../jobspecs/router.nomad.hcl"), substr(jsonencode(local.given), 0, 0)])

  hcl2 {
    vars = { for name, value in local.given : name => tostring(value) if value != null }
  }

  # An apply ends when they are ready, or says why not. Nomad itself gives each four minutes, and goes back then.
  detach = !var.wait
  timeouts {
    create = "15m"
    update = "15m"
  }

  # Stopped by somebody: they run again after an apply. A stopped job would keep its namespace from going.
  rerun_if_dead    = true
  purge_on_destroy = true

  # They need all of it at their start, and routers that stop finish their requests with it.
  depends_on = [
    nomad_namespace.this,
    nomad_acl_policy.this,
    vault_jwt_auth_backend_role.this,
    nomad_variable.consul_token,
    var.after,
  ]
}
