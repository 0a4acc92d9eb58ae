# The routers of a modalnomad cluster as one Nomad job: they take requests, wake, route and drain replicas.
#
#   modalnomad setup --router-job modalnomad        # once; or Terraform, whose module router-job runs this very file
#   nomad job run -var vault_address=http://vault:8200 -var artifacts_store=s3://bucket/prefix router.nomad.hcl
#
# Rights come from who this job is, its workload identity; no token is made by anybody. Its namespace, the policy of Nomad
# that is attached to this job, its role of Vault and its login to Consul are made by either of the above. What they allow
# is written down in modalnomad/hashicorp/setup/platform.json under modalnomad-router. All that may register jobs in this
# namespace may do what routers may.

variable "namespace" {
  type        = string
  default     = "modalnomad"
  description = "Where it runs: a namespace of its own. Not one of modalnomad-…: those are environments, and who deploys there could replace it."
}

variable "datacenters" {
  type        = list(string)
  default     = ["*"]
  description = "Datacenters it may run in."
}

variable "node_pool" {
  type        = string
  default     = "default"
  description = "Nodes it may run on."
}

variable "instances" {
  type        = number
  default     = 2
  description = "Routers, each on a node of its own. Each serves everything; any one may be lost."
}

variable "command" {
  type        = string
  default     = "/opt/modalnomad/.venv/bin/modalnomad"
  description = "The program on the nodes: a virtual environment with the package modalnomad in it."
}

variable "user" {
  type        = string
  default     = ""
  description = "User of its nodes that it runs as, who has to be let through the folders of Nomad's data_dir; empty: that of Nomad's agent."
}

variable "uid" {
  type        = number
  default     = -1
  description = "Number of that user on its nodes, for consul_login = variable: only it can read the token then. -1: unknown, and whoever is let through the folders can."
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

variable "artifacts_store" {
  type        = string
  description = "The bucket that deploys write to: s3://…, gs://…, az://…; or a folder that all of them share."
}

variable "vault_address" {
  type        = string
  description = "URL of Vault or OpenBao."
}

variable "nomad_address" {
  type        = string
  default     = ""
  description = "URL of Nomad; empty: the agent of its own node, on the node's address."
}

variable "consul_address" {
  type        = string
  default     = ""
  description = "URL of Consul; empty: the agent of its own node, on the node's address."
}

variable "consul_login" {
  type        = string
  default     = "identity"
  description = "How it gets its token of Consul. identity: Nomad logs in for it; variable: you put one into the variable nomad/jobs/modalnomad-router as consul_token; none: Consul has no ACLs."

  validation {
    condition     = contains(["identity", "variable", "none"], var.consul_login)
    error_message = "Write identity, variable or none."
  }
}

variable "env" {
  type        = map(string)
  default     = {}
  description = "More of its settings, and others instead of those below, by their variables: MODALNOMAD_ROUTER__BODY_LIMIT, VAULT_CACERT. No secrets: who may read the job reads them."
}

variable "identity_ttl" {
  type        = string
  default     = "24h"
  description = "How long a token of Nomad that leaked can be of use. Nomad renews it at the half of it or before: once its servers were away for longer than the rest, routers start nothing until it does."
}

variable "cpu" {
  type        = number
  default     = 1000
  description = "MHz reserved for each."
}

variable "memory" {
  type        = number
  default     = 256
  description = "MiB reserved for each."
}

variable "memory_max" {
  type        = number
  default     = 1024
  description = "MiB it may take where Nomad lets tasks take more than what is reserved."
}

job "modalnomad-router" {
  namespace   = var.namespace
  datacenters = var.datacenters
  node_pool   = var.node_pool
  type        = "service"

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
      healthy_deadline  = "2m"
      progress_deadline = "4m"
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
      user   = var.user

      config {
        command = var.command
        args    = ["router", "--json"]
      }

      # SIGTERM begins the drain: no new connections, requests in flight are finished, up to router.drain_timeout.
      # kill_timeout has to be longer than that; nodes cut it at their max_kill_timeout, which is 30 s unless set.
      kill_signal  = "SIGTERM"
      kill_timeout = "45s"

      # For Nomad. The router reads the file again before each request. Not the identity that every task has: Nomad gives
      # that one no end but that of the allocation, and hands it out in the environment, where it would never be renewed.
      identity {
        name        = "router"
        aud         = ["nomadproject.io"]
        ttl         = var.identity_ttl
        file        = true
        change_mode = "noop"
      }

      # The router renews its token as Nomad does. Where there is a new one, for Vault was away for too long, it reads it
      # when the old one is refused: a restart would take all routers away at once.
      vault {
        role         = "modalnomad-router"
        env          = false
        disable_file = false
        change_mode  = "noop"
      }

      # Nomad logs in to Consul as this job before it starts, hands the token over as CONSUL_HTTP_TOKEN and logs out after
      # it ended. Nomad never logs in again, whatever becomes of the token: the router does, by the identity in the file.
      dynamic "consul" {
        for_each = var.consul_login == "identity" ? ["default"] : []
        content {}
      }
      dynamic "identity" {
        for_each = var.consul_login == "identity" ? ["consul_default"] : []
        content {
          name        = identity.value
          aud         = ["consul.io"]
          ttl         = "1h"
          file        = true
          change_mode = "noop"
        }
      }

      dynamic "template" {
        for_each = var.consul_login == "variable" ? ["consul"] : []
        content {
          destination = "secrets/consul.token"
          data        = "{{ with nomadVar \"nomad/jobs/modalnomad-router\" }}{{ .consul_token }}{{ end }}"
          uid         = var.uid
          perms       = var.user == "" || var.uid >= 0 ? "0400" : "0444"
          change_mode = "noop"
        }
      }

      env = merge(
        {
          MODALNOMAD_BACKEND = "hashicorp"
          MODALNOMAD_HOME    = "${NOMAD_ALLOC_DIR}/data/home"

          # Not the settings of a user of the node: they may name that user's tokens, and a file counts before a variable.
          MODALNOMAD_CONFIG = "/dev/null"

          NOMAD_ADDR       = var.nomad_address != "" ? var.nomad_address : "http://${attr.unique.network.ip-address}:4646"
          CONSUL_HTTP_ADDR = var.consul_address != "" ? var.consul_address : "http://${attr.unique.network.ip-address}:8500"
          VAULT_ADDR       = var.vault_address

          MODALNOMAD_NOMAD__TOKEN_FILE = "${NOMAD_SECRETS_DIR}/nomad_router.jwt"
          CONSUL_HTTP_TOKEN_FILE       = var.consul_login == "variable" ? "${NOMAD_SECRETS_DIR}/consul.token" : ""
          MODALNOMAD_VAULT__TOKEN_FILE = "${NOMAD_SECRETS_DIR}/vault_token"

          MODALNOMAD_ROUTER__HOST       = "${NOMAD_IP_http}"
          MODALNOMAD_ROUTER__PORT       = "${NOMAD_PORT_http}"
          MODALNOMAD_ROUTER__ADMIN_HOST = "${NOMAD_IP_admin}"
          MODALNOMAD_ROUTER__ADMIN_PORT = "${NOMAD_PORT_admin}"
          MODALNOMAD_ROUTER__DOMAIN     = var.domain

          # Seconds. With shutdown_delay above, drain_delay may stay 0.
          MODALNOMAD_ROUTER__DRAIN_TIMEOUT = "30"

          MODALNOMAD_ARTIFACTS__STORE = var.artifacts_store
          MODALNOMAD_ARTIFACTS__HOST  = "${NOMAD_IP_artifacts}"
          MODALNOMAD_ARTIFACTS__PORT  = "${NOMAD_PORT_artifacts}"
        },
        { for name, file in {
          MODALNOMAD_CONSUL__LOGIN_FILE = "${NOMAD_SECRETS_DIR}/nomad_consul_default.jwt"
        } : name => file if var.consul_login == "identity" },
        var.env,
      )

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
