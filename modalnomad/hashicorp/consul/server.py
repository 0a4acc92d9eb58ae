"""Consul as the settings name it."""

from __future__ import annotations

from typing import Final

from modalnomad.hashicorp.access import server_of
from modalnomad.hashicorp.http import Server
from modalnomad.settings import ConsulSettings

HEADER: Final = "X-Consul-Token"
"""Holds the token."""


def consul_server(settings: ConsulSettings) -> Server:
    """Whom to ask. Raises BackendRefused for a token or certificate that cannot be read."""
    variables = ("CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN")
    return server_of(settings, settings.address, name="Consul", header=HEADER, variables=variables)
