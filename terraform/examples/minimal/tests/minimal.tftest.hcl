# What is planned, without any server: `terraform test` with stand-ins for the providers. Their plug-ins are needed all the
# same. Nothing is applied: what prevents the end of the store of secrets would keep the test from cleaning up.

mock_provider "nomad" {}
mock_provider "vault" {}

variables {
  artifacts_store = "s3://bucket/prefix"
  artifacts_url   = "http://routers.internal:8702"
}

run "everything_by_default" {
  command = plan

  assert {
    condition     = output.namespace == "modalnomad-main" && output.vault_role == "modalnomad-main"
    error_message = "The environment: ${output.namespace}, ${output.vault_role}."
  }
  assert {
    condition     = toset(output.nomad_policies) == toset(["modalnomad-deployer", "modalnomad-router", "modalnomad-viewer"])
    error_message = "Policies of Nomad: ${join(", ", output.nomad_policies)}."
  }
  assert {
    condition     = toset(output.vault_policies) == toset(["modalnomad-deployer", "modalnomad-router"])
    error_message = "Policies of Vault: ${join(", ", output.vault_policies)}."
  }
  assert {
    condition = alltrue([for line in [
      "environment = \"main\"", "domain = \"localhost\"", "address = \"http://127.0.0.1:4646\"", "mount = \"secret\"",
      "auth_mount = \"jwt-nomad\"", "store = \"s3://bucket/prefix\"",
    ] : contains(split("\n", output.settings), line)])
    error_message = "A line is missing in:\n${output.settings}"
  }
}

run "another_environment_and_another_domain" {
  command = plan

  variables {
    environment = "staging"
    domain      = "apps.example.org"
    routers     = 1
  }

  assert {
    condition     = output.namespace == "modalnomad-staging" && output.vault_role == "modalnomad-staging"
    error_message = "The environment: ${output.namespace}, ${output.vault_role}."
  }
  assert {
    condition     = strcontains(output.settings, "domain = \"apps.example.org\"") && strcontains(output.settings, "environment = \"staging\"")
    error_message = "The settings do not say so:\n${output.settings}"
  }
}
