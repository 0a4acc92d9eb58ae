# What comes out. `terraform test` needs no provider here. Refusals: refusals.tftest.hcl.

variables {
  environments = ["main", "staging"]
}

run "every_name_by_default" {
  command = plan

  assert {
    condition     = toset(keys(output.nomad_policies)) == toset(["modalnomad-deployer", "modalnomad-router", "modalnomad-viewer"])
    error_message = "Policies of Nomad: ${join(", ", keys(output.nomad_policies))}."
  }
  assert {
    condition     = toset(keys(output.vault_policies)) == toset(["modalnomad-deployer", "modalnomad-router"])
    error_message = "Policies of Vault: ${join(", ", keys(output.vault_policies))}."
  }
  assert {
    condition     = toset(keys(output.consul_policies)) == toset(["modalnomad-deployer", "modalnomad-router", "modalnomad-nomad-agent"])
    error_message = "Policies of Consul: ${join(", ", keys(output.consul_policies))}."
  }
  assert {
    condition     = { for name, one in output.environments : name => one.namespace.name } == { main = "modalnomad-main", staging = "modalnomad-staging" }
    error_message = "A namespace for each environment."
  }
  assert {
    condition     = output.vault_mount.path == "secret" && output.vault_mount.options.version == "2" && output.vault_auth.path == "jwt-nomad"
    error_message = "Mounts of Vault."
  }
  assert {
    condition     = output.vault_auth.config.jwks_url == "http://127.0.0.1:4646${output.jwks_path}"
    error_message = "Where Vault reads Nomad's keys: ${output.vault_auth.config.jwks_url}."
  }
  assert {
    condition     = output.router.name == "modalnomad-router" && output.router.namespace.name == "modalnomad"
    error_message = "The routers' job."
  }
  assert {
    condition     = output.router.nomad_policy.rules == output.nomad_policies["modalnomad-router"].rules
    error_message = "The routers' job may what routers may."
  }
  assert {
    condition     = output.platform_key == "modalnomad-platform/key"
    error_message = "The platform key."
  }
}

run "an_environment_reads_its_own_secrets_only" {
  command = plan

  assert {
    condition = alltrue([
      for name, one in output.environments :
      jsondecode(one.vault_policy.rules) == { path = { "secret/data/modalnomad/${name}/*" = { capabilities = ["read"] } } }
    ])
    error_message = "A task reads the secrets of its environment and nothing else."
  }
  assert {
    condition = alltrue([
      for name, one in output.environments :
      one.vault_role.bound_claims == { nomad_namespace = one.namespace.name } && one.vault_role.token_policies == [one.vault_policy.name]
    ])
    error_message = "Only tasks of the environment's namespace log in to its role."
  }
}

run "texts_are_sorted_json_without_spaces" {
  command = plan

  assert {
    condition = alltrue([
      for one in concat(values(output.nomad_policies), values(output.consul_policies)) : jsonencode(jsondecode(one.rules)) == one.rules
    ])
    error_message = "modalnomad setup sends the same text byte by byte."
  }
}

run "other_names_reach_every_text" {
  command = plan

  variables {
    environments       = ["main"]
    mount              = "kv/apps"
    auth_mount         = "nomad/jwt"
    prefix             = "platform/modalnomad"
    jwks_url           = "https://nomad.internal:4646/.well-known/jwks.json"
    router_namespace   = "routers"
    consul_auth_method = "nomad"
  }

  assert {
    condition     = output.vault_mount.path == "kv/apps" && output.vault_auth.path == "nomad/jwt"
    error_message = "Mounts."
  }
  assert {
    condition     = output.vault_auth.config.jwks_url == "https://nomad.internal:4646/.well-known/jwks.json"
    error_message = "The URL of Nomad's keys."
  }
  assert {
    condition     = alltrue([for path in keys(jsondecode(output.vault_policies["modalnomad-deployer"].rules).path) : startswith(path, "kv/apps/")])
    error_message = "All paths of a policy lie below the mount."
  }
  assert {
    condition     = keys(jsondecode(output.consul_policies["modalnomad-deployer"].rules).key_prefix) == ["platform/modalnomad/"]
    error_message = "Keys of Consul begin with the prefix."
  }
  assert {
    condition     = output.router.namespace.name == "routers" && output.router.vault_role.bound_claims.nomad_namespace == "routers" && strcontains(output.router.consul_binding_rule.selector, "== \"routers\"")
    error_message = "The namespace of routers stands in every claim."
  }
  assert {
    condition     = output.router.consul_auth_method.name == "nomad"
    error_message = "Consul's auth method."
  }
  assert {
    condition     = !strcontains(jsonencode([output.environments, output.router, output.vault_policies, output.consul_policies]), "$${")
    error_message = "No placeholder is left."
  }
}

run "no_environment_is_fine" {
  command = plan

  variables {
    environments = []
  }

  assert {
    condition     = length(output.environments) == 0
    error_message = "Policies can be had without an environment."
  }
}

run "names_may_be_as_long_as_they_may" {
  command = plan

  variables {
    environments     = ["a", "0", "a-", join("", [for _ in range(63) : "e"])]
    router_namespace = "modalnomad"
  }

  assert {
    condition     = length(output.environments) == 4
    error_message = "1 to 63 characters."
  }
}

run "settings_say_what_was_given" {
  command = plan

  variables {
    mount = "kv"
    settings = {
      environment           = "staging"
      domain                = "apps.example.org"
      nomad_address         = "https://nomad.internal:4646"
      nomad_ca_cert         = "/etc/ssl/nomad \"ca\".pem"
      nomad_tls_server_name = "server.global.nomad"
      consul_address        = "http://127.0.0.1:8500"
      vault_address         = "https://vault.internal:8200"
      artifacts_store       = "s3://bucket/prefix"
      artifacts_url         = "http://routers.internal:8702"
    }
  }

  assert {
    condition = alltrue([for line in [
      "backend = \"hashicorp\"", "environment = \"staging\"",
      "[router]", "domain = \"apps.example.org\"",
      "[nomad]", "address = \"https://nomad.internal:4646\"", "ca_cert = \"/etc/ssl/nomad \\\"ca\\\".pem\"",
      "tls_server_name = \"server.global.nomad\"",
      "[consul]", "address = \"http://127.0.0.1:8500\"", "prefix = \"modalnomad\"",
      "[vault]", "address = \"https://vault.internal:8200\"", "mount = \"kv\"", "auth_mount = \"jwt-nomad\"",
      "[artifacts]", "store = \"s3://bucket/prefix\"", "url = \"http://routers.internal:8702\"",
    ] : contains(split("\n", output.settings_toml), line)])
    error_message = "A line is missing in:\n${output.settings_toml}"
  }
}

run "settings_leave_out_what_was_not_given" {
  command = plan

  assert {
    condition     = length(regexall("(?m)^(address|ca_cert|tls_server_name|domain|environment|store|url|token|token_file) =|^\\[(router|artifacts)\\]|null", output.settings_toml)) == 0
    error_message = "Too much in:\n${output.settings_toml}"
  }
}
