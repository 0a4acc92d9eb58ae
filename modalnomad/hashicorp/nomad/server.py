"""Nomad as the settings name it."""

from __future__ import annotations

from modalnomad.hashicorp.access import server_of
from modalnomad.hashicorp.http import Server
from modalnomad.settings import NomadSettings


def nomad_server(settings: NomadSettings) -> Server:
    """Whom to ask. Raises BackendRefused for a token or certificate that cannot be read."""
    variables = ("NOMAD_ADDR", "NOMAD_TOKEN")
    return server_of(settings, settings.address, name="Nomad", header="X-Nomad-Token", variables=variables)
