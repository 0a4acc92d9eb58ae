variable "environments" {
  type        = set(string)
  default     = []
  description = "Environments, such as `main`. Each is a namespace of Nomad, a folder of secrets and a role of Vault."

  validation {
    condition     = alltrue([for name in var.environments : can(regex("^[a-z0-9][a-z0-9-]{0,62}$", name))])
    error_message = "Names of environments are 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit, such as \"main\"."
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
