"""How Consul is reached, from the settings."""

from __future__ import annotations

import ssl
from typing import Final

from modalnomad.hashicorp.http import Server
from modalnomad.model.errors import BackendRefused
from modalnomad.settings import ConsulSettings

ADDRESS_SETTING: Final = "CONSUL_HTTP_ADDR (consul.address)"
TOKEN_SETTING: Final = "CONSUL_HTTP_TOKEN (consul.token)"


def consul_server(settings: ConsulSettings) -> Server:
    """Reads the token's file and the certificates. Raises BackendRefused naming the file that cannot be read."""
    token = settings.token.get_secret_value()
    if settings.token_file is not None:
        try:
            token = settings.token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BackendRefused(
                f"cannot read Consul's token from {settings.token_file}: {_reason(error)}",
                "the path comes from CONSUL_HTTP_TOKEN_FILE (consul.token_file)",
            ) from error
    return Server(
        name="Consul",
        address=settings.address.rstrip("/"),
        setting=ADDRESS_SETTING,
        headers={"X-Consul-Token": token} if token else {},
        tls=_tls(settings),
        token_setting=TOKEN_SETTING,
    )


def _tls(settings: ConsulSettings) -> ssl.SSLContext | None:
    """None: the system's certificates."""
    if settings.ca_cert is None and settings.client_cert is None:
        return None
    path = settings.ca_cert
    try:
        context = ssl.create_default_context(cafile=settings.ca_cert)
        if settings.client_cert is not None:
            path = settings.client_cert
            context.load_cert_chain(settings.client_cert, settings.client_key)
    except (OSError, ssl.SSLError) as error:
        raise BackendRefused(
            f"cannot use the certificate {path}: {_reason(error)}",
            "the paths come from CONSUL_CACERT, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY (consul.ca_cert, …)",
        ) from error
    return context


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
