# What is planned, without any server: `terraform test` with a stand-in for the provider. Its plug-in is needed all the same.

mock_provider "vault" {}

variables {
  jwks_url = "https://nomad.internal:4646/.well-known/jwks.json"
}

run "a_store_a_login_and_policies" {
  command = plan

  assert {
    condition     = vault_mount.this[0].path == "secret" && vault_mount.this[0].type == "kv" && vault_mount.this[0].options == tomap({ version = "2" })
    error_message = "The store of secrets is one of version 2."
  }
  assert {
    condition     = vault_jwt_auth_backend.this[0].path == "jwt-nomad" && vault_jwt_auth_backend.this[0].jwks_url == var.jwks_url
    error_message = "The login reads the keys that Nomad shows."
  }
  assert {
    condition     = output.mount == "secret" && output.auth_mount == "jwt-nomad"
    error_message = "Others take ${output.mount} and ${output.auth_mount} from here."
  }
  assert {
    condition     = toset(output.policies) == toset(["modalnomad-deployer", "modalnomad-router"])
    error_message = "Policies: ${join(", ", output.policies)}."
  }
}

run "what_is_there_already_is_left_alone" {
  variables {
    mount             = "kv/apps"
    create_mount      = false
    auth_mount        = "nomad/jwt"
    create_auth_mount = false
  }

  assert {
    condition     = length(vault_mount.this) == 0 && length(vault_jwt_auth_backend.this) == 0
    error_message = "Neither is made."
  }
  assert {
    condition     = output.mount == "kv/apps" && output.auth_mount == "nomad/jwt"
    error_message = "Others take ${output.mount} and ${output.auth_mount} from here."
  }
  assert {
    condition     = alltrue([for one in vault_policy.this : alltrue([for path in keys(jsondecode(one.policy).path) : startswith(path, "kv/apps/")])])
    error_message = "Policies are of that store."
  }
}

run "keys_at_what_is_no_url" {
  command = plan

  variables {
    jwks_url = "nomad.internal:4646"
  }

  expect_failures = [var.jwks_url]
}

run "an_authority_by_the_name_of_its_file" {
  command = plan

  variables {
    jwks_ca_pem = "nomad-ca.pem"
  }

  expect_failures = [var.jwks_ca_pem]
}
