"""Nomad as the settings name it."""

from __future__ import annotations

from modalnomad.hashicorp.access import tls_of, token_of
from modalnomad.hashicorp.http import Server
from modalnomad.settings import NomadSettings


def nomad_server(settings: NomadSettings) -> Server:
    """Whom to ask. Raises BackendRefused for a token or certificate that cannot be read."""
    headers = {}
    if token := token_of(settings, "nomad.token_file"):
        headers["X-Nomad-Token"] = token
    return Server(
        name="Nomad",
        address=settings.address.rstrip("/"),
        setting="NOMAD_ADDR (nomad.address)",
        headers=headers,
        tls=tls_of(settings, "nomad"),
        token_setting="NOMAD_TOKEN (nomad.token)" if settings.token_file is None else "nomad.token_file",
    )
