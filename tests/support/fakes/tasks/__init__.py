"""What a Nomad client does with one raw_exec task, for real: folders, artifacts, Vault, templates, environment,
process, logs, Consul services, events. Texts and orders as measured on Nomad 2.0.5."""
