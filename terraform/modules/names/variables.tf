variable "environments" {
  type        = set(string)
  default     = []
  description = "Environments, such as `main`. Each is a namespace of Nomad, a folder of secrets and a role of Vault."

  validation {
    condition     = alltrue([for name in var.environments : can(regex("^[a-z0-9][a-z0-9-]{0,62}$", name))])
    error_message = "Names of environments are 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit, such as \"main\"."
  }

  # Who deploys, or routers, would have the rights of its tasks, and the other way round.
  validation {
    condition = length(setintersection(local.own_in_vault, flatten([
      for name in var.environments : [for text in local.environments_in_vault : replace(text, "$${environment}", name)]
    ]))) == 0
    error_message = "No environment can be named as a policy or role of the platform's own in Vault is, such as \"router\" or \"deployer\": take another name."
  }
}

variable "mount" {
  type        = string
  default     = "secret"
  description = "Where Vault has the key-value store, version 2, of secrets: `vault.mount` of the settings."

  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]+(/[a-zA-Z0-9_-]+)*$", var.mount))
    error_message = "A mount is names of a-z, A-Z, 0-9, _ and - with single slashes between them, such as \"secret\" or \"kv/modalnomad\"; none at the ends."
  }
}

variable "auth_mount" {
  type        = string
  default     = "jwt-nomad"
  description = "Where Vault has the login by Nomad's identities: `vault.auth_mount` of the settings, `jwt_auth_backend_path` of Nomad's agents."

  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]+(/[a-zA-Z0-9_-]+)*$", var.auth_mount))
    error_message = "A mount is names of a-z, A-Z, 0-9, _ and - with single slashes between them, such as \"jwt-nomad\"; none at the ends."
  }
}

variable "prefix" {
  type        = string
  default     = "modalnomad"
  description = "Keys in Consul begin with this and a slash: `consul.prefix` of the settings."

  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]+(/[a-zA-Z0-9_-]+)*$", var.prefix))
    error_message = "A prefix is names of a-z, A-Z, 0-9, _ and - with single slashes between them, such as \"modalnomad\"; none at the ends."
  }
}

variable "jwks_url" {
  type        = string
  default     = "http://127.0.0.1:4646/.well-known/jwks.json"
  description = "Where Vault, and Consul, read the public keys that Nomad signs identities with: they ask themselves, so it has to be an address that they reach."

  validation {
    condition     = can(regex("^https?://[^\\s\"\\\\]+$", var.jwks_url))
    error_message = "Write a URL that Vault itself reaches, such as \"https://nomad.internal:4646/.well-known/jwks.json\"."
  }
}

variable "router_namespace" {
  type        = string
  default     = "modalnomad"
  description = "Namespace of Nomad in which routers run as a job."

  validation {
    condition     = can(regex("^[a-zA-Z0-9-]{1,128}$", var.router_namespace)) && !startswith(var.router_namespace, "modalnomad-")
    error_message = "Write 1 to 128 of a-z, A-Z, 0-9 and -, such as \"modalnomad\"; not one that begins with \"modalnomad-\", which are environments: who deploys there could replace the routers."
  }
}

variable "consul_auth_method" {
  type        = string
  default     = "nomad-workloads"
  description = "Consul's auth method for Nomad's identities: `task_auth_method` of Nomad's agents."

  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]{1,128}$", var.consul_auth_method))
    error_message = "Write 1 to 128 of a-z, A-Z, 0-9, _ and -, such as \"nomad-workloads\"."
  }
}

variable "settings" {
  type = object({
    environment            = optional(string)
    domain                 = optional(string)
    nomad_address          = optional(string)
    nomad_ca_cert          = optional(string)
    nomad_tls_server_name  = optional(string)
    consul_address         = optional(string)
    consul_ca_cert         = optional(string)
    consul_tls_server_name = optional(string)
    vault_address          = optional(string)
    vault_ca_cert          = optional(string)
    vault_tls_server_name  = optional(string)

    artifacts_store = optional(string)
    artifacts_url   = optional(string)
  })
  default     = {}
  nullable    = false
  description = "What `settings_toml` says beside the mounts and the prefix, as those who deploy reach it: URLs of the servers, PEM files of the authorities that signed their certificates, names those are for where they are not of the addresses' hosts (`…_tls_server_name`), `domain` of the endpoints, `artifacts_store` and `artifacts_url`, and the `environment` of commands without `--env`. What is left out has its default there."

  validation {
    condition = alltrue([
      for name in ["nomad_address", "consul_address", "vault_address", "artifacts_url"] :
      var.settings[name] == null || can(regex("^https?://[^\\s[:cntrl:]\"\\\\]+$", var.settings[name]))
    ])
    error_message = "Addresses, and artifacts_url, are URLs such as \"https://nomad.internal:4646\"."
  }

  validation {
    condition     = var.settings.domain == null || can(regex("^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", var.settings.domain))
    error_message = "Write domain as the last part of host names, such as \"apps.example.org\": a-z, 0-9, - and dots, nothing before or after it."
  }

  validation {
    condition     = var.settings.artifacts_store == null || can(regex("^(/|(s3|gs|az)://)[^[:cntrl:]]*$", var.settings.artifacts_store))
    error_message = "Write artifacts_store as a bucket, such as \"s3://bucket/prefix\" (or gs://, az://), or as the absolute path of a folder that all deployers and routers share."
  }

  validation {
    condition = alltrue([
      for name in ["nomad_ca_cert", "consul_ca_cert", "vault_ca_cert"] :
      var.settings[name] == null || can(regex("^/[^[:cntrl:]]+$", var.settings[name]))
    ])
    error_message = "Certificates are absolute paths of PEM files where modalnomad runs, such as \"/etc/ssl/nomad-ca.pem\"."
  }

  validation {
    condition = alltrue([
      for name in ["nomad_tls_server_name", "consul_tls_server_name", "vault_tls_server_name"] :
      var.settings[name] == null || can(regex("^[a-zA-Z0-9_.:-]+$", var.settings[name]))
    ])
    error_message = "Names in certificates are of hosts, such as \"server.global.nomad\", or addresses."
  }

  validation {
    condition     = var.settings.environment == null || contains(var.environments, coalesce(var.settings.environment, "-"))
    error_message = "The environment of the settings is one of `environments`: write one of those, or leave it out for \"main\"."
  }
}
