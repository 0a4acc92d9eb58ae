"""Consul: what is served, by whom, and who may ask; the port `Discovery` on its KV."""
