variable "mount" {
  type        = string
  nullable    = false
  description = "Where Vault has the store of secrets: output `mount` of module `vault-platform`."
}

variable "auth_mount" {
  type        = string
  nullable    = false
  description = "Where Vault has the login by Nomad's identities: output `auth_mount` of module `vault-platform`."
}

variable "prefix" {
  type        = string
  default     = "modalnomad"
  nullable    = false
  description = "Keys in Consul begin with this and a slash: `consul.prefix` of the settings."
}

variable "after" {
  type        = any
  default     = null
  description = "What has to be there before routers start: outputs of other modules, such as `[module.nomad_platform, module.consul_platform]`."
}

variable "namespace" {
  type        = string
  default     = "modalnomad"
  nullable    = false
  description = "Namespace of Nomad in which routers run. Whoever may register jobs there may do what routers may."
}

variable "create_namespace" {
  type        = bool
  default     = true
  nullable    = false
  description = "Whether that namespace is made here. `false`: it is there already, and stays."
}

variable "wait" {
  type        = bool
  default     = true
  nullable    = false
  description = "Whether an apply lasts until the routers are ready, and fails when they do not become so."
}

variable "artifacts_store" {
  type        = string
  nullable    = false
  description = "The bucket that deploys write to, such as `s3://bucket/prefix` (or `gs://`, `az://`); or the absolute path of a folder that deployers and routers share."

  validation {
    condition     = can(regex("^(/|(s3|gs|az)://)[^[:cntrl:]]*$", var.artifacts_store))
    error_message = "Write a bucket, such as \"s3://bucket/prefix\" (or gs://, az://), or the absolute path of a folder that all deployers and routers share."
  }
}

variable "vault_address" {
  type        = string
  nullable    = false
  description = "URL of Vault or OpenBao, as the nodes reach it."

  validation {
    condition     = can(regex("^https?://[^\\s\"\\\\]+$", var.vault_address))
    error_message = "Write a URL that the nodes reach, such as \"https://vault.internal:8200\"."
  }
}

variable "nomad_address" {
  type        = string
  default     = null
  description = "URL of Nomad, as the nodes reach it, such as `https://nomad.internal:4646`. Null: the agent of the router's own node, in plain HTTP on the node's address."

  validation {
    condition     = var.nomad_address == null || can(regex("^https?://[^\\s\"\\\\]+$", var.nomad_address))
    error_message = "Write a URL that the nodes reach, such as \"https://nomad.internal:4646\", or leave it out."
  }
}

variable "consul_address" {
  type        = string
  default     = null
  description = "URL of Consul, as the nodes reach it, such as `http://127.0.0.1:8500`. Null: the agent of the router's own node, in plain HTTP on the node's address."

  validation {
    condition     = var.consul_address == null || can(regex("^https?://[^\\s\"\\\\]+$", var.consul_address))
    error_message = "Write a URL that the nodes reach, such as \"http://127.0.0.1:8500\", or leave it out."
  }
}

variable "consul_login" {
  type        = string
  default     = "identity"
  nullable    = false
  description = "How routers get their token of Consul. `identity`: Nomad logs in for them, see module `consul-platform`; `variable`: from the variable `nomad/jobs/modalnomad-router` of their namespace, item `consul_token`; `none`: Consul has no ACLs."

  validation {
    condition     = contains(["identity", "variable", "none"], var.consul_login)
    error_message = "Write \"identity\", \"variable\" or \"none\"."
  }
}

variable "consul_auth_method" {
  type        = string
  default     = null
  description = "With `consul_login = \"identity\"`: the auth method, output `auth_method` of module `consul-platform`, `task_auth_method` of Nomad's agents. Null: `nomad-workloads`."
}

variable "consul_token" {
  type        = string
  default     = null
  sensitive   = true
  ephemeral   = true
  description = "With `consul_login = \"variable\"` and a `consul_token_version`: the token, with the policy `modalnomad-router`. It gets into no plan and no state."
}

variable "consul_token_version" {
  type        = number
  default     = null
  description = "Write 1 to have `consul_token` put into the variable of Nomad, and a higher number for each new token. Null: you put it there yourself, with `nomad var put`."

  validation {
    condition     = var.consul_token_version == null || var.consul_login == "variable"
    error_message = "Routers read no token from a variable unless consul_login is \"variable\": leave consul_token_version out, or write that."
  }
}

variable "domain" {
  type        = string
  default     = null
  description = "Last part of all host names, such as `apps.example.org`: a wildcard record `*.apps.example.org` leads to the routers, or what is in front of them. Null: `localhost`."

  validation {
    condition     = var.domain == null || can(regex("^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", var.domain))
    error_message = "Write the last part of host names, such as \"apps.example.org\": a-z, 0-9, - and dots, nothing before or after it."
  }
}

variable "instances" {
  type        = number
  default     = null
  description = "Routers, each on a node of its own. Null: 2."

  validation {
    condition     = var.instances == null || can(regex("^[1-9][0-9]*$", tostring(var.instances)))
    error_message = "Write a whole number from 1 on, at most as many as there are nodes."
  }
}

variable "datacenters" {
  type        = list(string)
  default     = null
  description = "Datacenters that routers may run in, such as `[\"dc1\"]`. Null: all."
}

variable "node_pool" {
  type        = string
  default     = null
  description = "Nodes that routers may run on. Null: `default`."
}

variable "command" {
  type        = string
  default     = null
  description = "Path of `modalnomad` on the nodes. Null: `/opt/modalnomad/.venv/bin/modalnomad`."

  validation {
    condition     = var.command == null || can(regex("^/", var.command))
    error_message = "Write an absolute path, such as \"/opt/modalnomad/.venv/bin/modalnomad\"."
  }
}

variable "user" {
  type        = string
  default     = null
  description = "User of the nodes that routers run as; folders of Nomad's `data_dir` have to let it through. Null: that of Nomad's agent."
}

variable "uid" {
  type        = number
  default     = null
  description = "Number of that user on the nodes, where its token of Consul is a variable of Nomad: only it can read the token then. Null: unknown, and whoever is let through the folders can."
}

variable "port" {
  type        = number
  default     = null
  description = "Where requests come in. Null: 8700."

  validation {
    condition     = var.port == null || can(var.port >= 1 && var.port <= 65535 && floor(var.port) == var.port)
    error_message = "Write a port from 1 to 65535."
  }
}

variable "admin_port" {
  type        = number
  default     = null
  description = "Metrics, health and `/debug`, for nobody outside. Null: 8701."

  validation {
    condition     = var.admin_port == null || can(var.admin_port >= 1 && var.admin_port <= 65535 && floor(var.admin_port) == var.admin_port)
    error_message = "Write a port from 1 to 65535."
  }
}

variable "artifacts_port" {
  type        = number
  default     = null
  description = "Where nodes get the code of Apps: `artifacts.url` of those who deploy leads there. Null: 8702."

  validation {
    condition     = var.artifacts_port == null || can(var.artifacts_port >= 1 && var.artifacts_port <= 65535 && floor(var.artifacts_port) == var.artifacts_port)
    error_message = "Write a port from 1 to 65535."
  }
}

variable "env" {
  type        = map(string)
  default     = {}
  nullable    = false
  description = "More settings of routers by their variables, such as `VAULT_CACERT`, a path on the nodes, or `MODALNOMAD_ROUTER__BODY_LIMIT`. `$${attr.…}` and `$${meta.…}` are filled in by Nomad. No secrets: they are in the job, and in state."

  validation {
    condition     = alltrue([for name in keys(var.env) : can(regex("^[A-Z][A-Z0-9_]*$", name))])
    error_message = "Names of variables are A-Z, 0-9 and _, such as \"VAULT_CACERT\"."
  }
}

variable "identity_ttl" {
  type        = string
  default     = null
  description = "How long a token of Nomad that leaked could be of use, such as `8h`; Nomad renews it in time. Null: `24h`."

  validation {
    condition     = var.identity_ttl == null || can(regex("^([0-9]+(h|m|s))+$", var.identity_ttl))
    error_message = "Write a time such as \"8h\" or \"90m\"."
  }
}

variable "cpu" {
  type        = number
  default     = null
  description = "MHz reserved for each. Null: 1000."
}

variable "memory" {
  type        = number
  default     = null
  description = "MiB reserved for each. Null: 256."
}

variable "memory_max" {
  type        = number
  default     = null
  description = "MiB each may take where Nomad lets tasks take more than what is reserved. Null: 1024."
}
