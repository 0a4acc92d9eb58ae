variable "name" {
  type        = string
  description = "Write its name as in `modalnomad deploy --env NAME`, such as `main`."

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,62}$", var.name))
    error_message = "The name of an environment is 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit, such as \"main\"."
  }
}

variable "mount" {
  type        = string
  description = "Where Vault keeps secrets. Write `module.<vault-platform>.mount`."
}

variable "auth_mount" {
  type        = string
  description = "Where Vault has the login by Nomad's identities. Write `module.<vault-platform>.auth_mount`."
}

variable "task_drivers" {
  type        = set(string)
  default     = null
  description = "Task drivers that jobs of this environment may use, such as `[\"docker\"]`; without it, all that nodes have."

  validation {
    condition     = var.task_drivers == null || try(length(var.task_drivers) > 0, false)
    error_message = "Write at least one driver, such as [\"raw_exec\"] or [\"docker\"], or leave it out."
  }
}
