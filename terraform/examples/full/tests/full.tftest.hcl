# What is planned, without any server: `terraform test` with stand-ins for the providers. Their plug-ins are needed all the
# same. Nothing is applied: what prevents the end of the store of secrets would keep the test from cleaning up.

mock_provider "nomad" {}
mock_provider "vault" {}
mock_provider "consul" {}

variables {
  environments = {
    main    = {}
    staging = { task_drivers = ["docker"] }
  }
  nomad_address             = "https://nomad.internal:4646/"
  consul_address            = "https://consul.internal:8501"
  create_consul_auth_method = true
  vault_address             = "https://vault.internal:8200"
  domain                    = "apps.example.org"
  artifacts_store           = "s3://bucket/prefix"
  artifacts_url             = "http://routers.internal:8702"
}

run "every_name" {
  command = plan

  assert {
    condition = output.environments == {
      main    = { namespace = "modalnomad-main", vault_role = "modalnomad-main" }
      staging = { namespace = "modalnomad-staging", vault_role = "modalnomad-staging" }
    }
    error_message = "Environments: ${jsonencode(output.environments)}."
  }
  assert {
    condition = [output.routers.nomad_policy, output.routers.vault_role, output.routers.service] == [
      "modalnomad-router-job", "modalnomad-router", "modalnomad-router",
    ]
    error_message = "Routers: ${output.routers.nomad_policy}, ${output.routers.vault_role}, ${output.routers.service}."
  }
  assert {
    condition = { for server, names in output.policies : server => toset(names) } == {
      nomad  = toset(["modalnomad-deployer", "modalnomad-router", "modalnomad-viewer"])
      consul = toset(["modalnomad-deployer", "modalnomad-router", "modalnomad-nomad-agent"])
      vault  = toset(["modalnomad-deployer", "modalnomad-router"])
    }
    error_message = "Policies: ${jsonencode(output.policies)}."
  }
  assert {
    condition     = output.jwks_url == "https://nomad.internal:4646/.well-known/jwks.json"
    error_message = "Vault reads keys at ${output.jwks_url}."
  }
  assert {
    condition     = output.addresses.endpoints == "http://*.apps.example.org:8700"
    error_message = "Endpoints: ${output.addresses.endpoints}."
  }
  assert {
    condition     = !strcontains(output.settings, "environment =") && strcontains(output.settings, "mount = \"modalnomad\"")
    error_message = "Settings:\n${output.settings}"
  }
}

run "settings_name_an_environment_that_there_is" {
  command = plan

  variables {
    environments = { prod = {} }
  }

  assert {
    condition     = strcontains(output.settings, "environment = \"prod\"") && strcontains(output.next, "--env prod")
    error_message = "Settings:\n${output.settings}"
  }
}

run "no_environment_is_refused" {
  command = plan

  variables {
    environments = {}
  }

  expect_failures = [var.environments]
}

run "consul_without_a_scheme_is_refused" {
  command = plan

  variables {
    consul_address = "consul.internal:8501"
  }

  expect_failures = [var.consul_address]
}
