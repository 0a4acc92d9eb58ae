"""Nomad's public keys, which Vault and Consul read themselves where they are told to."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.tls import Trust, read_pem
from modalnomad.model.errors import BackendRefused

CERTIFICATE: Final = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
"""What is said beside them is for people."""


async def signer_of(url: str, nomad_ca: Path | None) -> str | None:
    """PEM of what signed the certificate behind `url`; None: there is none, or an authority that all know. `nomad_ca`:
    its file. Raises BackendRefused."""
    if nomad_ca is None or not url.startswith("https"):
        return None
    text = await asyncio.to_thread(read_pem, nomad_ca, Trust("nomad").named("ca_cert"))
    return "".join(f"{certificate}\n" for certificate in CERTIFICATE.findall(text))


def believes(found: object, ca: str | None) -> bool:
    """Whether who has this certificate, or these, believes what `ca` signed; None: whatever it believes is right."""
    return ca is None or all(certificate in str(found or "") for certificate in CERTIFICATE.findall(ca))


def unreadable(server: str, url: str, error: ServerRefused, ca: str | None) -> BackendRefused:
    """What to say when `server` cannot read them at `url`, where it believes `ca`."""
    hint = f"{server} itself asks there: give an address it reaches (vault.jwks_url), with Nomad's servers running"
    if url.startswith("https:"):
        whom = "who is in NOMAD_CACERT (nomad.ca_cert)" if ca else "whom its machine knows: no NOMAD_CACERT is given"
        hint += (
            "; Nomad must not want a certificate from it (verify_https_client), and its own has to be for that host, "
            f"signed by {whom}"
        )
    return BackendRefused(
        f"{server} cannot read Nomad's public keys at {url}: {error.text}", f"{hint}; then run this command again"
    )
