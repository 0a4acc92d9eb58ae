"""Is a cluster fit to run Apps? Looks at Nomad, Vault and Consul, and names the fix for what is wrong."""
