# Without any server: `terraform test` with a stand-in for the provider. Its plug-in is needed all the same.

mock_provider "nomad" {}

run "policies_and_nothing_else" {
  assert {
    condition     = toset(output.policies) == toset(["modalnomad-deployer", "modalnomad-router", "modalnomad-viewer"])
    error_message = "Policies: ${join(", ", output.policies)}."
  }
  assert {
    condition     = length(nomad_scheduler_config.this) == 0 && length(nomad_acl_token.this) == 0
    error_message = "The scheduler is its operator's, and tokens are made by people."
  }
  assert {
    condition     = output.jwks_url == "http://127.0.0.1:4646/.well-known/jwks.json"
    error_message = "Keys at ${output.jwks_url}."
  }
}

run "the_scheduler_where_it_is_asked_for_with_all_four_kinds" {
  variables {
    manage_scheduler    = true
    scheduler_algorithm = "spread"
    preemption          = { service = true }
  }

  assert {
    condition = nomad_scheduler_config.this[0].preemption_config == tomap({
      batch_scheduler_enabled    = false
      service_scheduler_enabled  = true
      sysbatch_scheduler_enabled = false
      system_scheduler_enabled   = true
    })
    error_message = "Preemption: ${jsonencode(nomad_scheduler_config.this[0].preemption_config)}."
  }
  assert {
    condition     = nomad_scheduler_config.this[0].scheduler_algorithm == "spread" && nomad_scheduler_config.this[0].memory_oversubscription_enabled
    error_message = "The algorithm, and memory above what is reserved."
  }
}

run "tokens_are_warned_of" {
  variables {
    create_tokens = true
  }

  expect_failures = [check.no_secrets_in_state]
}

run "keys_are_read_where_it_is_said" {
  variables {
    nomad_address = "https://nomad.internal:4646//"
  }

  assert {
    condition     = output.jwks_url == "https://nomad.internal:4646/.well-known/jwks.json"
    error_message = "Keys at ${output.jwks_url}."
  }
}

run "policies_of_ours_in_other_words_are_taken_over" {
  override_data {
    target = data.nomad_acl_policies.all
    values = { policies = [{ name = "modalnomad-viewer", description = "modalnomad: as it once was" }, { name = "web", description = "" }] }
  }

  assert {
    condition     = nomad_acl_policy.this["modalnomad-viewer"].name == "modalnomad-viewer"
    error_message = "What is ours is told by how its description begins."
  }
}

run "policies_of_somebody_else_are_not" {
  command = plan

  override_data {
    target = data.nomad_acl_policies.all
    values = { policies = [{ name = "modalnomad-viewer", description = "who reads our logs" }] }
  }

  expect_failures = [nomad_acl_policy.this["modalnomad-viewer"]]
}

run "one_that_only_begins_alike_is_not_ours" {
  command = plan

  override_data {
    target = data.nomad_acl_policies.all
    values = { policies = [{ name = "modalnomad-viewer", description = "modalnomad-viewer: of another team" }] }
  }

  expect_failures = [nomad_acl_policy.this["modalnomad-viewer"]]
}

run "an_address_that_is_none" {
  command = plan

  variables {
    nomad_address = "nomad.internal:4646"
  }

  expect_failures = [var.nomad_address]
}

run "an_algorithm_that_nobody_knows" {
  command = plan

  variables {
    scheduler_algorithm = "random"
  }

  expect_failures = [var.scheduler_algorithm]
}
