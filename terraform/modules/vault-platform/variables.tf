variable "jwks_url" {
  type        = string
  description = "Where Vault reads the public keys that Nomad signs identities with. Write `module.<nomad-platform>.jwks_url`: the reference keeps Vault from being told before Nomad answers."

  validation {
    condition     = can(regex("^https?://[^\\s\"\\\\]+$", var.jwks_url))
    error_message = "Write a URL that Vault itself reaches, such as \"https://nomad.internal:4646/.well-known/jwks.json\"."
  }
}

variable "jwks_ca_pem" {
  type        = string
  default     = null
  description = "Certificate of the authority that signed Nomad's, for an `https` URL: write `file(\"nomad-ca.pem\")`. Without it those count that Vault's machine trusts."

  validation {
    condition     = var.jwks_ca_pem == null || can(regex("-----BEGIN CERTIFICATE-----", var.jwks_ca_pem))
    error_message = "Write the text of a PEM file, such as file(\"nomad-ca.pem\"): it holds -----BEGIN CERTIFICATE-----."
  }
}

variable "mount" {
  type        = string
  default     = "secret"
  nullable    = false
  description = "Where the key-value store of secrets lies: `vault.mount` of the settings."
}

variable "create_mount" {
  type        = bool
  default     = true
  nullable    = false
  description = "Make the store. Write `false` where there is one of version 2 already."
}

variable "auth_mount" {
  type        = string
  default     = "jwt-nomad"
  nullable    = false
  description = "Where the login by Nomad's identities lies: `vault.auth_mount` of the settings, `jwt_auth_backend_path` of Nomad's agents."
}

variable "create_auth_mount" {
  type        = bool
  default     = true
  nullable    = false
  description = "Make the login. Write `false` where there is one already that reads this Nomad's keys, such as what `nomad setup vault` made."
}
