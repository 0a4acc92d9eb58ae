# What is planned, without any server: `terraform test` with stand-ins for the providers. Their plug-ins are needed all the same.

mock_provider "nomad" {}
mock_provider "vault" {}

variables {
  mount           = "kv"
  auth_mount      = "jwt-nomad"
  artifacts_store = "s3://bucket/prefix"
  vault_address   = "https://vault.internal:8200"
}

run "a_namespace_rights_and_the_job" {
  command = plan

  assert {
    condition     = nomad_namespace.this[0].name == "modalnomad"
    error_message = "A namespace of its own: ${nomad_namespace.this[0].name}."
  }
  assert {
    condition     = [for one in nomad_acl_policy.this.job_acl : [one.namespace, one.job_id]] == [["modalnomad", "modalnomad-router"]]
    error_message = "The policy is given to this job alone."
  }
  assert {
    condition     = vault_jwt_auth_backend_role.this.bound_claims == tomap({ nomad_namespace = "modalnomad", nomad_job_id = "modalnomad-router" })
    error_message = "The role is this job's alone."
  }
  assert {
    condition     = nomad_job.this.rerun_if_dead && nomad_job.this.purge_on_destroy && !nomad_job.this.detach
    error_message = "Stopped by hand it runs again; it goes with all that Nomad knew of it; an apply waits for it."
  }
  assert {
    condition     = length(nomad_variable.consul_token) == 0 && nomad_job.this.hcl2[0].vars.consul_login == "identity"
    error_message = "It logs in to Consul as itself."
  }
  assert {
    condition     = !contains(keys(nomad_job.this.hcl2[0].vars), "user") && !contains(values(nomad_job.this.hcl2[0].vars), "")
    error_message = "What is not said has the jobspec's own default: ${join(", ", keys(nomad_job.this.hcl2[0].vars))}."
  }
}

run "what_nomad_fills_in_stays_as_it_is" {
  command = plan

  variables {
    env = { VAULT_CACERT = "/etc/$${attr.unique.hostname}/%%{a}.pem" }
  }

  assert {
    condition     = strcontains(nomad_job.this.hcl2[0].vars.env, "/etc/$$${attr.unique.hostname}/%%%{a}.pem")
    error_message = "Variables: ${nomad_job.this.hcl2[0].vars.env}."
  }
}

run "a_namespace_that_is_there_is_used" {
  command = plan

  variables {
    namespace        = "platform"
    create_namespace = false
  }

  assert {
    condition     = length(nomad_namespace.this) == 0 && nomad_job.this.hcl2[0].vars.namespace == "platform"
    error_message = "None is made."
  }
}

run "a_token_of_consul_in_a_variable" {
  command = plan

  variables {
    consul_login         = "variable"
    consul_token         = "not-in-the-state"
    consul_token_version = 1
  }

  assert {
    condition     = nomad_variable.consul_token[0].path == "nomad/jobs/modalnomad-router" && nomad_variable.consul_token[0].items_wo == null
    error_message = "Its value is write-only."
  }
}

run "a_namespace_of_somebody_else" {
  command = plan

  override_data {
    target = data.nomad_namespaces.all
    values = { namespaces = ["modalnomad"] }
  }
  override_data {
    target = data.nomad_namespace.there
    values = { description = "of another team" }
  }

  expect_failures = [nomad_namespace.this]
}

run "one_that_only_begins_alike_is_not_ours" {
  command = plan

  override_data {
    target = data.nomad_namespaces.all
    values = { namespaces = ["modalnomad"] }
  }
  override_data {
    target = data.nomad_namespace.there
    values = { description = "modalnomad-main: of another team" }
  }

  expect_failures = [nomad_namespace.this]
}

run "a_policy_of_somebody_else" {
  command = plan

  override_data {
    target = data.nomad_acl_policies.all
    values = { policies = [{ name = "modalnomad-router-job", description = "modalnomad-router-job: of another team" }] }
  }

  expect_failures = [nomad_acl_policy.this]
}

run "a_version_of_a_token_that_nobody_reads" {
  command = plan

  variables {
    consul_token_version = 1
  }

  expect_failures = [var.consul_token_version]
}

run "half_a_router" {
  command = plan

  variables {
    instances = 0.5
  }

  expect_failures = [var.instances]
}

run "a_store_that_nodes_do_not_reach" {
  command = plan

  variables {
    artifacts_store = "artifacts"
  }

  expect_failures = [var.artifacts_store]
}
