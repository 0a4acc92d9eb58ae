variable "prefix" {
  type        = string
  default     = "modalnomad"
  nullable    = false
  description = "Keys in Consul begin with this and a slash: `consul.prefix` of the settings."
}

variable "login" {
  type        = bool
  default     = true
  nullable    = false
  description = "Let routers that run as a job of Nomad log in by their identity. Write `false` where they have a token, or run elsewhere."
}

variable "create_auth_method" {
  type        = bool
  default     = null
  description = "Make the auth method. Look first: `consul acl auth-method list`. Write `true` where none has the name `auth_method`, `false` where there is one, such as what `nomad setup consul` made: it serves others too."

  validation {
    condition     = !var.login || var.create_auth_method != null
    error_message = "Look whether `consul acl auth-method list` shows the name of `auth_method`, and write create_auth_method = false if it does, true if not. Consul would replace one that is there without asking, and its end would be that of every token it gave."
  }
}

variable "auth_method" {
  type        = string
  default     = "nomad-workloads"
  nullable    = false
  description = "Consul's auth method for Nomad's identities: `task_auth_method` of Nomad's agents."
}

variable "jwks_url" {
  type        = string
  default     = null
  description = "Where Consul's servers read the public keys that Nomad signs identities with, where the auth method is made. Write `module.<nomad-platform>.jwks_url`: the reference keeps Consul from being told before Nomad answers."

  validation {
    condition     = !(var.login && coalesce(var.create_auth_method, false)) || var.jwks_url != null
    error_message = "Write a URL that Consul's servers themselves reach, such as \"https://nomad.internal:4646/.well-known/jwks.json\": the auth method is made with it."
  }

  validation {
    condition     = var.jwks_url == null || can(regex("^https?://[^\\s\"\\\\]+$", var.jwks_url))
    error_message = "Write a URL that Consul's servers themselves reach, such as \"https://nomad.internal:4646/.well-known/jwks.json\"."
  }
}

variable "jwks_ca_pem" {
  type        = string
  default     = null
  description = "Certificate of the authority that signed Nomad's, for an `https` URL: write `file(\"nomad-ca.pem\")`. Without it those count that the machines of Consul's servers trust."

  validation {
    condition     = var.jwks_ca_pem == null || can(regex("-----BEGIN CERTIFICATE-----", var.jwks_ca_pem))
    error_message = "Write the text of a PEM file, such as file(\"nomad-ca.pem\"): it holds -----BEGIN CERTIFICATE-----."
  }
}

variable "router_namespace" {
  type        = string
  default     = "modalnomad"
  nullable    = false
  description = "Namespace of Nomad in which routers run: `namespace` of the module `router-job`."
}
