variable "nomad_address" {
  type        = string
  default     = "http://127.0.0.1:4646"
  description = "URL of Nomad, for Terraform, for who deploys, for routers and, where `jwks_url` says nothing else, for Vault."
}

variable "jwks_url" {
  type        = string
  default     = null
  description = "Where Vault reads Nomad's public keys, if it does not reach `nomad_address`, such as `http://10.0.0.5:4646/.well-known/jwks.json`."
}

variable "vault_address" {
  type        = string
  default     = "http://127.0.0.1:8200"
  description = "URL of Vault or OpenBao, for Terraform, for who deploys and for routers."
}

variable "consul_address" {
  type        = string
  default     = "http://127.0.0.1:8500"
  description = "URL of Consul, for who deploys and for routers. Terraform makes nothing there: its ACLs are off."
}

variable "environment" {
  type        = string
  default     = "main"
  description = "Name of the environment. Later another name would replace it: for one more call the module `environment` again."
}

variable "domain" {
  type        = string
  default     = "localhost"
  description = "Last part of the endpoints' host names, such as `apps.example.org`."
}

variable "artifacts_store" {
  type        = string
  description = "Where deployed code is kept: a bucket, such as `s3://bucket/prefix`, or a folder that all deployers and routers share."
}

variable "artifacts_url" {
  type        = string
  description = "How nodes reach the routers for that code, by a name that leads to those that run, such as `http://routers.internal:8702`."
}

variable "routers" {
  type        = number
  default     = 2
  description = "How many routers, each on a node of its own. Write 1 for a cluster of one node."
}

variable "command" {
  type        = string
  default     = "/opt/modalnomad/.venv/bin/modalnomad"
  description = "Path of `modalnomad` on the nodes."
}
