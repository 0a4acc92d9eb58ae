# Without any server: `terraform test` with a stand-in for the provider. Its plug-in is needed all the same.

mock_provider "consul" {}

variables {
  jwks_url = "https://nomad.internal:4646/.well-known/jwks.json"
}

run "policies_an_auth_method_and_the_routers_login" {
  variables {
    create_auth_method = true
  }

  assert {
    condition     = toset(output.policies) == toset(["modalnomad-deployer", "modalnomad-router", "modalnomad-nomad-agent"])
    error_message = "Policies: ${join(", ", output.policies)}."
  }
  assert {
    condition     = jsondecode(consul_acl_auth_method.this[0].config_json).JWKSURL == var.jwks_url && output.auth_method == "nomad-workloads"
    error_message = "The auth method reads the keys that Nomad shows: ${consul_acl_auth_method.this[0].config_json}."
  }
  assert {
    condition     = strcontains(consul_acl_binding_rule.this[0].selector, "\"modalnomad-router\"") && strcontains(consul_acl_binding_rule.this[0].selector, "\"modalnomad\"")
    error_message = "Routers alone log in: ${consul_acl_binding_rule.this[0].selector}."
  }
  assert {
    condition     = consul_acl_role.this[0].policies == toset([consul_acl_policy.this["modalnomad-router"].id]) && consul_acl_binding_rule.this[0].bind_name == output.role
    error_message = "The rule gives the role, and that has the routers' policy."
  }
}

run "the_auth_method_of_nomads_agents_is_used" {
  variables {
    create_auth_method = false
    auth_method        = "agents"
  }
  override_data {
    target = data.consul_acl_auth_method.there
    values = {
      type        = "jwt"
      config_json = "{\"BoundAudiences\":[\"consul.io\",\"more\"],\"ClaimMappings\":{\"nomad_namespace\":\"nomad_namespace\",\"nomad_job_id\":\"nomad_job_id\",\"nomad_task\":\"nomad_task\",\"nomad_service\":\"nomad_service\"}}"
    }
  }

  assert {
    condition     = length(consul_acl_auth_method.this) == 0 && consul_acl_binding_rule.this[0].auth_method == "agents"
    error_message = "None is made: ${jsonencode(consul_acl_binding_rule.this)}."
  }
}

run "one_for_others_than_tasks_is_refused" {
  command = plan

  variables {
    create_auth_method = false
  }
  override_data {
    target = data.consul_acl_auth_method.there
    values = {
      type        = "jwt"
      config_json = "{\"BoundAudiences\":[\"elsewhere\"],\"ClaimMappings\":{\"nomad_namespace\":\"nomad_namespace\",\"nomad_job_id\":\"nomad_job_id\",\"nomad_task\":\"nomad_task\",\"nomad_service\":\"nomad_service\"}}"
    }
  }

  expect_failures = [data.consul_acl_auth_method.there]
}

run "one_that_does_not_say_who_a_task_is_is_refused" {
  command = plan

  variables {
    create_auth_method = false
  }
  override_data {
    target = data.consul_acl_auth_method.there
    values = { type = "jwt", config_json = "{\"BoundAudiences\":[\"consul.io\"]}" }
  }

  expect_failures = [data.consul_acl_auth_method.there]
}

run "no_login_no_role" {
  variables {
    login = false
  }

  assert {
    condition     = length(consul_acl_role.this) + length(consul_acl_binding_rule.this) + length(consul_acl_auth_method.this) == 0 && output.role == null
    error_message = "Policies alone."
  }
}
