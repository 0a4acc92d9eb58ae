# modalnomad on a cluster that runs, as small as it gets: one environment, no ACLs in Consul.
#
#   export NOMAD_TOKEN=… VAULT_TOKEN=…        # of management; Nomad's comes from `nomad acl bootstrap`
#   terraform init
#   terraform apply -var artifacts_store=s3://bucket/prefix

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
}

module "environment" {
  source = "../../modules/environment"

  name       = var.environment
  mount      = module.vault.mount
  auth_mount = module.vault.auth_mount
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
