# modalnomad on a cluster that runs, with all there is: several environments, Consul with ACLs, TLS with authorities of your
# own, Nomad's scheduler, the routers as a Nomad job that logs in everywhere as itself.
#
#   export NOMAD_TOKEN=… CONSUL_HTTP_TOKEN=… VAULT_TOKEN=…      # of management; see `nomad acl bootstrap` and its like
#   cp terraform.tfvars.example terraform.tfvars                # and write your own there
#   terraform init
#   terraform apply

provider "nomad" {
  address = var.nomad_address
  ca_file = var.nomad_ca_file
}

provider "consul" {
  address = replace(var.consul_address, "/^https?:\\/\\//", "")
  scheme  = split(":", var.consul_address)[0]
  ca_file = var.consul_ca_file
}

provider "vault" {
  address      = var.vault_address
  ca_cert_file = var.vault_ca_file
}

locals {
  nomad_ca_pem = var.nomad_ca_file == null ? null : file(var.nomad_ca_file)

  # Of what has an authority of its own.
  ca_files = {
    NOMAD_CACERT  = var.nomad_ca_file
    CONSUL_CACERT = var.consul_ca_file
    VAULT_CACERT  = var.vault_ca_file
  }
}

module "nomad" {
  source = "../../modules/nomad-platform"

  nomad_address    = var.nomad_address
  manage_scheduler = true

  # Routers find a place on nodes that are full of replicas.
  preemption = { service = true, batch = true }
}

module "vault" {
  source = "../../modules/vault-platform"

  mount        = var.mount
  create_mount = var.create_mount
  auth_mount   = var.auth_mount
  jwks_url     = module.nomad.jwks_url
  jwks_ca_pem  = local.nomad_ca_pem
}

module "consul" {
  source = "../../modules/consul-platform"

  prefix             = var.prefix
  create_auth_method = var.create_consul_auth_method
  jwks_url           = module.nomad.jwks_url
  jwks_ca_pem        = local.nomad_ca_pem
}

module "environment" {
  source   = "../../modules/environment"
  for_each = var.environments

  name         = each.key
  mount        = module.vault.mount
  auth_mount   = module.vault.auth_mount
  task_drivers = each.value.task_drivers
}

module "router" {
  source = "../../modules/router-job"

  mount              = module.vault.mount
  auth_mount         = module.vault.auth_mount
  prefix             = var.prefix
  consul_auth_method = module.consul.auth_method
  after              = [module.nomad, module.vault, module.consul]
  nomad_address      = var.nomad_address
  consul_address     = var.consul_address
  vault_address      = var.vault_address
  artifacts_store    = var.artifacts_store
  domain             = var.domain
  instances          = var.router.instances
  node_pool          = var.router.node_pool
  command            = var.router.command
  port               = var.router.port
  admin_port         = var.router.admin_port
  artifacts_port     = var.router.artifacts_port
  memory_max         = var.router.memory_max
  env                = merge({ for name, file in local.ca_files : name => file if file != null }, var.router.env)
}

module "names" {
  source = "../../modules/names"

  environments = keys(var.environments)
  mount        = module.vault.mount
  auth_mount   = module.vault.auth_mount
  prefix       = var.prefix

  settings = {
    environment     = contains(keys(var.environments), "main") ? null : keys(var.environments)[0]
    domain          = var.domain
    nomad_address   = var.nomad_address
    nomad_ca_cert   = var.nomad_ca_file
    consul_address  = var.consul_address
    consul_ca_cert  = var.consul_ca_file
    vault_address   = var.vault_address
    vault_ca_cert   = var.vault_ca_file
    artifacts_store = var.artifacts_store
    artifacts_url   = var.artifacts_url
  }
}
