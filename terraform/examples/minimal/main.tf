# modalnomad on a cluster that runs, as small as it gets: one environment, no ACLs in Consul.
#
#   export NOMAD_TOKEN=… VAULT_TOKEN=…        # of management; Nomad's comes from `nomad acl bootstrap`
#   terraform init
#   terraform apply -var artifacts_store=s3://bucket/prefix -var artifacts_url=http://routers.internal:8702

provider "nomad" {
  address = var.nomad_address
}

provider "vault" {
  address = var.vault_address
}

module "nomad" {
  source = "../../modules/nomad-platform"

  nomad_address = var.nomad_address
  jwks_url      = var.jwks_url
}

module "vault" {
  source = "../../modules/vault-platform"

  jwks_url = module.nomad.jwks_url

  # Where they are there already: `secret/` of version 2, and what `nomad setup vault` made.
  # create_mount      = false
  # create_auth_mount = false
}

module "environment" {
  source = "../../modules/environment"

  name       = var.environment
  mount      = module.vault.mount
  auth_mount = module.vault.auth_mount
}

# They make the platform's key at their first start. From then on everything is there: `modalnomad deploy`.
module "router" {
  source = "../../modules/router-job"

  mount           = module.vault.mount
  auth_mount      = module.vault.auth_mount
  nomad_address   = var.nomad_address
  consul_address  = var.consul_address
  vault_address   = var.vault_address
  consul_login    = "none"
  artifacts_store = var.artifacts_store
  domain          = var.domain
  instances       = var.routers
  command         = var.command
  after           = module.vault.policies
}

module "names" {
  source = "../../modules/names"

  environments = [var.environment]
  mount        = module.vault.mount
  auth_mount   = module.vault.auth_mount

  settings = {
    environment     = var.environment
    domain          = var.domain
    nomad_address   = var.nomad_address
    consul_address  = var.consul_address
    vault_address   = var.vault_address
    artifacts_store = var.artifacts_store
    artifacts_url   = var.artifacts_url
  }
}
