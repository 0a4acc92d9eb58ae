# Without any server: `terraform test` with stand-ins for the providers. Their plug-ins are needed all the same.

mock_provider "nomad" {}
mock_provider "vault" {}

variables {
  name       = "main"
  mount      = "kv"
  auth_mount = "jwt-nomad"
}

run "a_namespace_a_policy_and_a_role" {
  assert {
    condition     = output.namespace == "modalnomad-main" && output.vault_role == "modalnomad-main" && vault_policy.this.name == "modalnomad-main"
    error_message = "Names: ${output.namespace}, ${output.vault_role}, ${vault_policy.this.name}."
  }
  assert {
    condition     = vault_jwt_auth_backend_role.this.bound_claims == tomap({ nomad_namespace = "modalnomad-main" })
    error_message = "Only tasks of the namespace log in."
  }
  assert {
    condition     = length(nomad_namespace.this.capabilities) == 0
    error_message = "All drivers may be used."
  }
}

run "task_drivers_are_sorted" {
  variables {
    task_drivers = ["raw_exec", "docker"]
  }

  assert {
    condition     = nomad_namespace.this.capabilities[0].enabled_task_drivers == tolist(["docker", "raw_exec"])
    error_message = "Drivers: ${jsonencode(nomad_namespace.this.capabilities)}."
  }
}

run "a_namespace_of_ours_in_other_words_is_taken_over" {
  override_data {
    target = data.nomad_namespaces.all
    values = { namespaces = ["default", "modalnomad-main"] }
  }
  override_data {
    target = data.nomad_namespace.there
    values = { description = "modalnomad, as it once was" }
  }

  assert {
    condition     = nomad_namespace.this.description == "modalnomad, environment main"
    error_message = "What is ours is told by how its description begins."
  }
}

run "a_namespace_of_somebody_else_is_not" {
  command = plan

  override_data {
    target = data.nomad_namespaces.all
    values = { namespaces = ["default", "modalnomad-main"] }
  }
  override_data {
    target = data.nomad_namespace.there
    values = { description = "" }
  }

  expect_failures = [nomad_namespace.this]
}

run "one_that_only_begins_alike_is_not_ours" {
  command = plan

  override_data {
    target = data.nomad_namespaces.all
    values = { namespaces = ["modalnomad-main"] }
  }
  override_data {
    target = data.nomad_namespace.there
    values = { description = "modalnomad-main: of another team" }
  }

  expect_failures = [nomad_namespace.this]
}

run "a_name_in_capitals" {
  command = plan

  variables {
    name = "Main"
  }

  expect_failures = [var.name]
}

run "no_driver_at_all" {
  command = plan

  variables {
    task_drivers = []
  }

  expect_failures = [var.task_drivers]
}
