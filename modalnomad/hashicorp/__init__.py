"""The back end of a cluster: Nomad runs replicas, Consul tells routers, Vault or OpenBao keeps secrets."""
