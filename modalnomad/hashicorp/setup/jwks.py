"""Nomad's public keys, which Vault and Consul read themselves where they are told to."""

from __future__ import annotations

import asyncio
from pathlib import Path

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.model.errors import BackendRefused


async def signer_of(url: str, nomad_ca: Path | None) -> str | None:
    """PEM of what signed the certificate behind `url`; None: there is none, or an authority that all know. `nomad_ca`:
    its file. Raises BackendRefused."""
    if nomad_ca is None or not url.startswith("https"):
        return None
    try:
        return await asyncio.to_thread(nomad_ca.read_text, "ascii")
    except (OSError, ValueError) as error:
        raise BackendRefused(f"cannot read {nomad_ca}: {error}", "correct NOMAD_CACERT (nomad.ca_cert)") from error


def unreadable(server: str, url: str, error: ServerRefused) -> BackendRefused:
    """What to say when `server` cannot read them at `url`."""
    return BackendRefused(
        f"{server} cannot read Nomad's public keys at {url}: {error.text}",
        f"{server} itself asks there: give an address it reaches (vault.jwks_url), with Nomad's servers running, and "
        "run this command again",
    )
