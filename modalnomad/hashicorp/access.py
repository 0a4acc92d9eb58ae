"""What a client shows a server of the cluster, and what it believes: token and TLS out of the settings."""

from __future__ import annotations

import ssl
from pathlib import Path

from modalnomad.hashicorp.http import Server
from modalnomad.model.errors import BackendRefused
from modalnomad.settings import ServerSettings


def server_of(settings: ServerSettings, address: str, *, name: str, header: str, variables: tuple[str, str]) -> Server:
    """Whom to ask, and as who. `name`: `Nomad`, whose settings are the group `nomad`; `header`: of the token;
    `variables`: that set address and token besides. Raises BackendRefused for a file that cannot be read."""
    group = name.lower()
    token = token_of(settings, f"{group}.token_file")
    of_address, of_token = variables
    return Server(
        name=name,
        address=address.rstrip("/"),
        setting=f"{of_address} ({group}.address)",
        headers={header: token} if token else {},
        tls=tls_of(settings, group),
        token_setting=f"{of_token} ({group}.token)" if settings.token_file is None else f"{group}.token_file",
    )


def token_of(settings: ServerSettings, setting: str) -> str:
    """The token: of the file when one is named. Empty: none. `setting`: `nomad.token_file`, for errors. Raises
    BackendRefused."""
    if settings.token_file is None:
        return settings.token.get_secret_value()
    try:
        return settings.token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(settings.token_file, setting, error) from error


def tls_of(settings: ServerSettings, group: str) -> ssl.SSLContext | None:
    """None: the system's certificates, and none of our own. `group`: `nomad`, for errors. Raises BackendRefused."""
    if settings.ca_cert is None and settings.client_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_cert)
    except OSError as error:
        raise _unusable(settings.ca_cert, f"{group}.ca_cert", error) from error
    if settings.client_cert is not None:
        try:
            context.load_cert_chain(settings.client_cert, settings.client_key)
        except OSError as error:
            raise _unusable(settings.client_cert, f"{group}.client_cert, {group}.client_key", error) from error
    return context


def _unusable(path: Path | None, setting: str, error: Exception) -> BackendRefused:
    what = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return BackendRefused(f"cannot use {path}: {what}", f"the path comes from the setting {setting}")
