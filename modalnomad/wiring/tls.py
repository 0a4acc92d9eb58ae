"""The listener's certificate."""

from __future__ import annotations

import ssl

from modalnomad.model.errors import UserError
from modalnomad.settings import RouterSettings


def tls_context(settings: RouterSettings) -> ssl.SSLContext | None:
    """For HTTPS on the main listener; None: HTTP. Raises UserError when the files do not make a pair."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        given = "--tls-cert" if settings.tls_key is None else "--tls-key"
        raise UserError(f"{given} is given alone", "HTTPS needs both --tls-cert and --tls-key")
    for path in (settings.tls_cert, settings.tls_key):
        if not path.is_file():
            raise UserError(f"{path}: no such file", "name PEM files: the certificate with its chain, and its key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A passphrase would be asked for on the terminal, where nobody may be.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{settings.tls_cert} and {settings.tls_key} cannot be used: {reason}",
            "both must be PEM, belong together, and the key must have no passphrase",
        ) from None
    return context
