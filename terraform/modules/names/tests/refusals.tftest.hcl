# What is refused, each before anything is asked of a server.

variables {
  environments = ["main"]
}

run "environments_upper_case" {
  command = plan

  variables {
    environments = ["Main"]
  }

  expect_failures = [var.environments]
}

run "environments_a_dash_first" {
  command = plan

  variables {
    environments = ["-main"]
  }

  expect_failures = [var.environments]
}

run "environments_router_is_the_platforms_own_in_vault" {
  command = plan

  variables {
    environments = ["main", "router"]
  }

  expect_failures = [var.environments]
}

run "environments_deployer_is_the_platforms_own_in_vault" {
  command = plan

  variables {
    environments = ["main", "deployer"]
  }

  expect_failures = [var.environments]
}

run "environments_nothing" {
  command = plan

  variables {
    environments = [""]
  }

  expect_failures = [var.environments]
}

run "environments_64_characters" {
  command = plan

  variables {
    environments = [join("", [for _ in range(64) : "e"])]
  }

  expect_failures = [var.environments]
}

run "environments_a_placeholder" {
  command = plan

  variables {
    environments = ["$${mount}"]
  }

  expect_failures = [var.environments]
}

run "environments_an_underscore" {
  command = plan

  variables {
    environments = ["my_env"]
  }

  expect_failures = [var.environments]
}

run "mount_a_slash_at_its_end" {
  command = plan

  variables {
    mount = "secret/"
  }

  expect_failures = [var.mount]
}

run "mount_a_slash_first" {
  command = plan

  variables {
    mount = "/secret"
  }

  expect_failures = [var.mount]
}

run "mount_nothing" {
  command = plan

  variables {
    mount = ""
  }

  expect_failures = [var.mount]
}

run "mount_a_quote" {
  command = plan

  variables {
    mount = "a\"b"
  }

  expect_failures = [var.mount]
}

run "mount_two_slashes" {
  command = plan

  variables {
    mount = "kv//a"
  }

  expect_failures = [var.mount]
}

run "auth_mount_a_slash_at_its_end" {
  command = plan

  variables {
    auth_mount = "jwt-nomad/"
  }

  expect_failures = [var.auth_mount]
}

run "auth_mount_spaces" {
  command = plan

  variables {
    auth_mount = "jwt nomad"
  }

  expect_failures = [var.auth_mount]
}

run "auth_mount_a_slash_first" {
  command = plan

  variables {
    auth_mount = "/jwt"
  }

  expect_failures = [var.auth_mount]
}

run "prefix_a_slash_at_its_end" {
  command = plan

  variables {
    prefix = "modalnomad/"
  }

  expect_failures = [var.prefix]
}

run "prefix_nothing" {
  command = plan

  variables {
    prefix = ""
  }

  expect_failures = [var.prefix]
}

run "prefix_a_backslash" {
  command = plan

  variables {
    prefix = "a\\b"
  }

  expect_failures = [var.prefix]
}

run "jwks_url_no_scheme" {
  command = plan

  variables {
    jwks_url = "nomad:4646/.well-known/jwks.json"
  }

  expect_failures = [var.jwks_url]
}

run "jwks_url_a_space" {
  command = plan

  variables {
    jwks_url = "http://nomad: 4646"
  }

  expect_failures = [var.jwks_url]
}

run "jwks_url_a_quote" {
  command = plan

  variables {
    jwks_url = "http://a\"b"
  }

  expect_failures = [var.jwks_url]
}

run "jwks_url_another_scheme" {
  command = plan

  variables {
    jwks_url = "file:///keys"
  }

  expect_failures = [var.jwks_url]
}

run "router_namespace_that_of_an_environment" {
  command = plan

  variables {
    router_namespace = "modalnomad-main"
  }

  expect_failures = [var.router_namespace]
}

run "router_namespace_nothing" {
  command = plan

  variables {
    router_namespace = ""
  }

  expect_failures = [var.router_namespace]
}

run "router_namespace_a_star" {
  command = plan

  variables {
    router_namespace = "*"
  }

  expect_failures = [var.router_namespace]
}

run "router_namespace_a_quote" {
  command = plan

  variables {
    router_namespace = "a\"b"
  }

  expect_failures = [var.router_namespace]
}

run "consul_auth_method_nothing" {
  command = plan

  variables {
    consul_auth_method = ""
  }

  expect_failures = [var.consul_auth_method]
}

run "consul_auth_method_a_space" {
  command = plan

  variables {
    consul_auth_method = "nomad workloads"
  }

  expect_failures = [var.consul_auth_method]
}

run "settings_an_address_without_a_scheme" {
  command = plan

  variables {
    settings = { nomad_address = "nomad:4646" }
  }

  expect_failures = [var.settings]
}

run "settings_a_url_of_another_scheme" {
  command = plan

  variables {
    settings = { artifacts_url = "s3://bucket" }
  }

  expect_failures = [var.settings]
}

run "settings_an_address_with_a_line_break" {
  command = plan

  variables {
    settings = { vault_address = "http://a\nb" }
  }

  expect_failures = [var.settings]
}

run "settings_a_domain_with_a_dot_first" {
  command = plan

  variables {
    settings = { domain = ".apps.example.org" }
  }

  expect_failures = [var.settings]
}

run "settings_a_domain_with_a_star" {
  command = plan

  variables {
    settings = { domain = "*.apps.example.org" }
  }

  expect_failures = [var.settings]
}

run "settings_a_domain_that_is_a_url" {
  command = plan

  variables {
    settings = { domain = "http://apps.example.org" }
  }

  expect_failures = [var.settings]
}

run "settings_a_folder_that_is_not_absolute" {
  command = plan

  variables {
    settings = { artifacts_store = "artifacts" }
  }

  expect_failures = [var.settings]
}

run "settings_a_store_that_nobody_knows" {
  command = plan

  variables {
    settings = { artifacts_store = "ftp://host/folder" }
  }

  expect_failures = [var.settings]
}

run "settings_a_store_with_a_line_break" {
  command = plan

  variables {
    settings = { artifacts_store = "s3://bucket\ntoken = 1" }
  }

  expect_failures = [var.settings]
}

run "settings_a_store_with_del" {
  command = plan

  variables {
    settings = { artifacts_store = "s3://bucket/\u007f" }
  }

  expect_failures = [var.settings]
}

run "settings_a_certificate_that_is_no_path" {
  command = plan

  variables {
    settings = { vault_ca_cert = "ca.pem" }
  }

  expect_failures = [var.settings]
}

run "settings_a_server_name_that_is_none" {
  command = plan

  variables {
    settings = { consul_tls_server_name = "https://consul" }
  }

  expect_failures = [var.settings]
}

run "settings_an_environment_that_is_not_made" {
  command = plan

  variables {
    settings = { environment = "prod" }
  }

  expect_failures = [var.settings]
}
