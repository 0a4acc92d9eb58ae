variable "environments" {
  type = map(object({
    task_drivers = optional(set(string))
  }))
  default     = { main = {} }
  nullable    = false
  description = "Environments by name, such as `{ main = {}, staging = { task_drivers = [\"docker\"] } }`. Without `task_drivers` an environment may use all that nodes have."

  validation {
    condition     = length(var.environments) > 0
    error_message = "Write at least one environment, such as { main = {} }."
  }
}

variable "nomad_address" {
  type        = string
  description = "URL of Nomad, one that all reach: this machine, Vault, Consul, nodes, those who deploy. Such as `https://nomad.internal:4646`."
}

variable "nomad_ca_file" {
  type        = string
  default     = null
  description = "PEM file of the authority that signed Nomad's certificates, at the same absolute path here, on nodes and for those who deploy. Null: one that all these machines trust."
}

variable "consul_address" {
  type        = string
  description = "URL of Consul, one that this machine, nodes and those who deploy reach. Such as `https://consul.internal:8501`."

  validation {
    condition     = can(regex("^https?://[^\\s\"\\\\]+$", var.consul_address))
    error_message = "Write a URL, such as \"https://consul.internal:8501\"."
  }
}

variable "consul_ca_file" {
  type        = string
  default     = null
  description = "The same for Consul."
}

variable "create_consul_auth_method" {
  type        = bool
  description = "Make Consul's auth method `nomad-workloads`. Look first: `consul acl auth-method list`. Write `true` where it is not there, `false` where it is: Consul would replace it without asking."
}

variable "vault_address" {
  type        = string
  description = "URL of Vault or OpenBao, one that this machine, nodes and those who deploy reach. Such as `https://vault.internal:8200`."
}

variable "vault_ca_file" {
  type        = string
  default     = null
  description = "The same for Vault."
}

variable "mount" {
  type        = string
  default     = "modalnomad"
  description = "Where Vault keeps secrets."
}

variable "create_mount" {
  type        = bool
  default     = true
  description = "Whether that store is made. `false`: it is there already."
}

variable "auth_mount" {
  type        = string
  default     = "jwt-nomad"
  description = "Where Vault has the login by Nomad's identities: `jwt_auth_backend_path` of Nomad's agents."
}

variable "prefix" {
  type        = string
  default     = "modalnomad"
  description = "Keys in Consul begin with this and a slash."
}

variable "domain" {
  type        = string
  description = "Last part of the endpoints' host names, such as `apps.example.org`; a wildcard record `*.apps.example.org` leads to the routers, or what is in front of them."
}

variable "artifacts_store" {
  type        = string
  description = "Where deployed code is kept: a bucket, such as `s3://bucket/prefix`, or the absolute path of a folder that all deployers and routers share."
}

variable "artifacts_url" {
  type        = string
  description = "How nodes reach `artifacts_port` of any router, by a name that leads to those that run, such as `http://routers.internal:8702`."
}

variable "router" {
  type = object({
    instances      = optional(number)
    node_pool      = optional(string)
    command        = optional(string)
    port           = optional(number)
    admin_port     = optional(number)
    artifacts_port = optional(number)
    memory_max     = optional(number)
    env            = optional(map(string), {})
  })
  default     = {}
  nullable    = false
  description = "What is to be said of the routers' job: how many (2), on which nodes (`default`), path of `modalnomad` there (`/opt/modalnomad/.venv/bin/modalnomad`), ports (8700, 8701, 8702), memory in MiB (1024), and more of their settings by their variables."
}
