# The settings file of those who deploy, and of routers that are no Nomad job. No token passes through here: the file says
# where to name the files that hold them.

locals {
  settings = {
    router = { domain = var.settings.domain }
    nomad = {
      address         = var.settings.nomad_address
      ca_cert         = var.settings.nomad_ca_cert
      tls_server_name = var.settings.nomad_tls_server_name
    }
    consul = {
      address         = var.settings.consul_address
      ca_cert         = var.settings.consul_ca_cert
      tls_server_name = var.settings.consul_tls_server_name
      prefix          = var.prefix
    }
    vault = {
      address         = var.settings.vault_address
      ca_cert         = var.settings.vault_ca_cert
      tls_server_name = var.settings.vault_tls_server_name
      mount           = var.mount
      auth_mount      = var.auth_mount
    }
    artifacts = { store = var.settings.artifacts_store, url = var.settings.artifacts_url }
  }

  # A JSON string is a TOML string, unless DEL is in it: the variables allow no control characters. Null is left out.
  lines = {
    for group, values in local.settings :
    group => [for name, value in values : "${name} = ${jsonencode(value)}" if value != null]
  }

  tokens = [for server in ["nomad", "consul", "vault"] : {
    group = server
    line  = "# token_file = \"/home/ana/modalnomad-tokens/deployer.${server}\""
  }]

  groups = [
    for group in ["router", "nomad", "consul", "vault", "artifacts"] : concat(
      ["", "[${group}]"],
      local.lines[group],
      [for token in local.tokens : token.line if token.group == group],
    )
    if length(local.lines[group]) > 0 || contains(local.tokens[*].group, group)
  ]

  settings_toml = join("\n", concat(
    [
      "# ~/.config/modalnomad/config.toml, or where MODALNOMAD_CONFIG says.",
      "# token_file: where your own tokens lie, of one of ${join(", ", keys(local.nomad_policies))};",
      "# NOMAD_TOKEN, CONSUL_HTTP_TOKEN and VAULT_TOKEN count more, where they are set.",
      "backend = \"hashicorp\"",
    ],
    var.settings.environment == null ? [] : ["environment = ${jsonencode(var.settings.environment)}"],
    flatten(local.groups),
    [""],
  ))
}
