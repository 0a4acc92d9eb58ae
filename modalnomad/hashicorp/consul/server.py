"""Consul as the settings name it."""

from __future__ import annotations

from modalnomad.hashicorp.access import tls_of, token_of
from modalnomad.hashicorp.http import Server
from modalnomad.settings import ConsulSettings


def consul_server(settings: ConsulSettings) -> Server:
    """Whom to ask. Raises BackendRefused for a token or certificate that cannot be read."""
    headers = {}
    if token := token_of(settings, "consul.token_file"):
        headers["X-Consul-Token"] = token
    return Server(
        name="Consul",
        address=settings.address.rstrip("/"),
        setting="CONSUL_HTTP_ADDR (consul.address)",
        headers=headers,
        tls=tls_of(settings, "consul"),
        token_setting="CONSUL_HTTP_TOKEN (consul.token)" if settings.token_file is None else "consul.token_file",
    )
