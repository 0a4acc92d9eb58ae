# The routers of a modalnomad cluster as one Nomad job: they take requests, wake, route and drain replicas.
#
#   modalnomad setup                                        # policies, roles and the platform key; once
#   nomad job run -var vault_address=http://vault:8200 -var artifact_store=s3://bucket/prefix router.nomad.hcl
#
# Rights. What a router may is written down in modalnomad/hashicorp/setup/platform.json under modalnomad-router; it
# gets them like this:
#
#   Nomad   by its workload identity, without any token. Attach the same rules to this job:
#             nomad operator api /v1/acl/policy/modalnomad-router | jq -r .Rules > router-rules.json
#             nomad acl policy apply -namespace default -job modalnomad-router modalnomad-router-job router-rules.json
#   Vault   by its workload identity. A role for it, beside those of environments that `modalnomad setup` makes:
#             vault write auth/jwt-nomad/role/modalnomad-router - <<END
#             {"role_type": "jwt", "user_claim": "sub", "token_type": "service", "token_period": "30m",
#              "bound_audiences": "vault.io", "token_policies": "modalnomad-router",
#              "bound_claims": {"nomad_namespace": "default", "nomad_job_id": "modalnomad-router"}}
#             END
#   Consul  by a token with the policy modalnomad-router, in a variable that only this job reads:
#             nomad var put nomad/jobs/modalnomad-router consul_token=…
#           Without ACLs in Consul: -var consul_acl=false

variable "instances" {
  type        = number
  default     = 2
  description = "Routers, each on a node of its own. Each serves everything; any one may be lost."
}

variable "command" {
  type        = string
  default     = "/opt/modalnomad/bin/modalnomad"
  description = "The program on the nodes: a virtual environment with the package modalnomad in it."
}

variable "domain" {
  type        = string
  default     = "localhost"
  description = "Last part of all host names; a wildcard record *.domain leads to the routers, or what is in front of them."
}

variable "port" {
  type        = number
  default     = 8700
  description = "Where requests come in."
}

variable "admin_port" {
  type        = number
  default     = 8701
  description = "Metrics, health, readiness, /debug. Nobody is asked for a password there: keep it inside."
}

variable "artifacts_port" {
  type        = number
  default     = 8702
  description = "Where nodes get code. Deploys name it by artifacts.url (MODALNOMAD_ARTIFACTS__URL), with any name or load balancer that leads from the nodes to the routers."
}

variable "artifact_store" {
  type        = string
  description = "The bucket that deploys write to: s3://…, gs://…, az://…; or a folder that all of them share."
}

variable "vault_address" {
  type        = string
  description = "Of Vault or OpenBao."
}

variable "consul_acl" {
  type        = bool
  default     = true
  description = "Whether Consul wants a token."
}

job "modalnomad-router" {
  # Not one of modalnomad-…: each such namespace is an environment, with the rights of its replicas.
  namespace = "default"
  type      = "service"

  # Before replicas, where the servers allow preemption: without a router nothing is served.
  priority = 80

  group "router" {
    count = var.instances

    # Their ports are fixed, so that load balancers and nodes find them.
    constraint {
      distinct_hosts = true
    }

    network {
      port "http" {
        static = var.port
      }
      port "admin" {
        static = var.admin_port
      }
      port "artifacts" {
        static = var.artifacts_port
      }
    }

    # One after the other, each only when the one before it is ready; back to the old version when it never is.
    update {
      max_parallel      = 1
      health_check      = "checks"
      min_healthy_time  = "5s"
      healthy_deadline  = "3m"
      progress_deadline = "10m"
      auto_revert       = true
    }

    # A router that ended comes back on its node at once; after a lost node, elsewhere.
    restart {
      attempts = 10
      interval = "5m"
      delay    = "1s"
      mode     = "delay"
    }

    # What a router last read of Consul lies there: a new one in its place serves that while Consul is away.
    ephemeral_disk {
      size    = 300
      sticky  = true
      migrate = true
    }

    # Between the end of its registration and SIGTERM: as long as load balancers, and DNS, take to notice.
    shutdown_delay = "5s"

    service {
      name     = "modalnomad-router"
      provider = "consul"
      port     = "http"
      tags     = ["version=1"]

      # Ready: it knows what is served and is not stopping. That Consul or Nomad are away makes it stale, not unready.
      check {
        name     = "ready"
        type     = "http"
        port     = "admin"
        path     = "/readyz"
        interval = "2s"
        timeout  = "2s"
      }
    }

    task "router" {
      driver = "raw_exec"

      config {
        command = var.command
        args    = ["router", "--json"]
      }

      # SIGTERM begins the drain: no new connections, requests in flight are finished, up to router.drain_timeout.
      # kill_timeout has to be longer than that; nodes cut it at their max_kill_timeout, which is 30 s unless set.
      kill_signal  = "SIGTERM"
      kill_timeout = "45s"

      # NOMAD_TOKEN: what the policy attached to this job allows.
      identity {
        env = true
      }

      # Read from a file at the start. Nomad renews the token; should it ever get a new one, the router starts anew.
      vault {
        role         = "modalnomad-router"
        env          = false
        disable_file = false
        change_mode  = "restart"
      }

      dynamic "template" {
        for_each = var.consul_acl ? ["consul"] : []
        content {
          destination = "secrets/consul.token"
          data        = "{{ with nomadVar \"nomad/jobs/modalnomad-router\" }}{{ .consul_token }}{{ end }}"
          perms       = "0400"
          change_mode = "restart"
        }
      }

      env {
        MODALNOMAD_BACKEND = "hashicorp"
        MODALNOMAD_HOME    = "${NOMAD_ALLOC_DIR}/data/home"

        # The agents of its own node.
        NOMAD_ADDR       = "http://${attr.unique.network.ip-address}:4646"
        CONSUL_HTTP_ADDR = "http://${attr.unique.network.ip-address}:8500"
        VAULT_ADDR       = var.vault_address

        CONSUL_HTTP_TOKEN_FILE       = var.consul_acl ? "${NOMAD_SECRETS_DIR}/consul.token" : ""
        MODALNOMAD_VAULT__TOKEN_FILE = "${NOMAD_SECRETS_DIR}/vault_token"

        MODALNOMAD_ROUTER__HOST       = "${NOMAD_IP_http}"
        MODALNOMAD_ROUTER__PORT       = "${NOMAD_PORT_http}"
        MODALNOMAD_ROUTER__ADMIN_HOST = "${NOMAD_IP_admin}"
        MODALNOMAD_ROUTER__ADMIN_PORT = "${NOMAD_PORT_admin}"
        MODALNOMAD_ROUTER__DOMAIN     = var.domain

        # Seconds. With shutdown_delay above, drain_delay may stay 0.
        MODALNOMAD_ROUTER__DRAIN_TIMEOUT = "30"

        MODALNOMAD_ARTIFACTS__STORE = var.artifact_store
        MODALNOMAD_ARTIFACTS__HOST  = "${NOMAD_IP_artifacts}"
        MODALNOMAD_ARTIFACTS__PORT  = "${NOMAD_PORT_artifacts}"
      }

      resources {
        cpu        = 1000
        memory     = 256
        memory_max = 1024
      }
    }
  }
}
