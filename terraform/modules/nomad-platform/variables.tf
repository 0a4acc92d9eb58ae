variable "nomad_address" {
  type        = string
  default     = "http://127.0.0.1:4646"
  nullable    = false
  description = "URL of Nomad's agents as Vault, and Consul, reach them: they read the keys of identities there. Write a name that leads to several servers."

  validation {
    condition     = can(regex("^https?://[^\\s\"\\\\]+$", var.nomad_address))
    error_message = "Write a URL, such as \"https://nomad.internal:4646\"."
  }
}

variable "jwks_url" {
  type        = string
  default     = null
  description = "Where those keys are, if not at their usual path below `nomad_address`. Write a URL that Vault itself reaches."

  validation {
    condition     = var.jwks_url == null || can(regex("^https?://[^\\s\"\\\\]+$", var.jwks_url))
    error_message = "Write a URL that Vault itself reaches, such as \"https://nomad.internal:4646/.well-known/jwks.json\", or nothing."
  }
}

variable "manage_scheduler" {
  type        = bool
  default     = false
  nullable    = false
  description = "Write the configuration of Nomad's scheduler, all of it: write `true` only where nobody else does. What replicas need of it is that memory may be oversubscribed."
}

variable "scheduler_algorithm" {
  type        = string
  default     = "binpack"
  nullable    = false
  description = "With `manage_scheduler`: write `binpack` (few nodes, full) or `spread` (many, half empty)."

  validation {
    condition     = contains(["binpack", "spread"], var.scheduler_algorithm)
    error_message = "Write \"binpack\" or \"spread\"."
  }
}

variable "preemption" {
  type = object({
    batch    = optional(bool, false)
    service  = optional(bool, false)
    sysbatch = optional(bool, false)
    system   = optional(bool, true)
  })
  default     = {}
  nullable    = false
  description = "With `manage_scheduler`: which jobs may take the place of others whose priority is lower. As Nomad has it at first; with `service = true` routers find a place on full nodes."
}

variable "create_tokens" {
  type        = bool
  default     = false
  nullable    = false
  description = "Make a token for each policy. Their secret ids then lie in the state as plain text, readable for whoever reads the state: leave it `false` and run `nomad acl token create -policy …`."
}
