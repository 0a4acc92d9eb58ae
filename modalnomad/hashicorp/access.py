"""What a client shows a server of the cluster, and what it believes: token and TLS out of the settings."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from modalnomad.hashicorp.http import Server
from modalnomad.hashicorp.tls import trust_of
from modalnomad.model.errors import BackendRefused
from modalnomad.settings import ServerSettings

TOKEN: Final = re.compile(r"[!-~]*")
"""What servers give out, or none. Anything else the HTTP libraries would show as they refuse it."""
FIELDS: Final = ("address", "token")


def server_of(settings: ServerSettings, address: str, *, name: str, header: str, variables: tuple[str, str]) -> Server:
    """Whom to ask, and as who. `name`: `Nomad`, whose settings are the group `nomad`; `header`: of the token;
    `variables`: that set address and token besides. Raises BackendRefused for what cannot be used."""
    group = name.lower()
    of_address, of_token = (f"{variable} ({group}.{field})" for variable, field in zip(variables, FIELDS, strict=True))
    token_setting = of_token if settings.token_file is None else f"{group}.token_file"
    token = Token(settings, token_setting)
    return Server(
        name=name,
        address=address_of(address, of_address),
        setting=of_address,
        headers=lambda: {header: now} if (now := token.now()) else {},
        trust=trust_of(settings, group),
        token_setting=token_setting,
    )


def address_of(address: str, setting: str) -> str:
    """Without a slash at its end. Raises BackendRefused for what is no URL of a server."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        good = False
    if not good:
        raise BackendRefused(
            f"{address!r} is no address of a server: {setting}", "write http://host:port, or https://host:port"
        )
    return address.rstrip("/")


class Token:
    """The token of a server, as of now: who keeps its file fresh (Nomad, an agent) writes a new one before the old one
    ends. Raises BackendRefused where the file cannot be read at first, or there is no token in it. `setting`: where it
    comes from, for errors."""

    def __init__(self, settings: ServerSettings, setting: str) -> None:
        self._file = settings.token_file
        self._last = settings.token.get_secret_value()
        if self._file is None and not TOKEN.fullmatch(self._last):
            raise BackendRefused(
                f"{setting} holds no token: there are blanks, line ends or other letters in it", "correct it"
            )
        if self._file is not None:
            try:
                self._last = _read(self._file)
            except (OSError, ValueError) as error:
                raise _unusable(self._file, setting, error) from error

    def now(self) -> str:
        """Empty: none."""
        if self._file is not None:
            # Nomad writes it in place: for a moment it is empty.
            with suppress(OSError, ValueError):
                self._last = _read(self._file) or self._last
        return self._last


def _read(file: Path) -> str:
    """Raises OSError; ValueError: no token, which as a header would be refused with an error that nobody expects."""
    text = file.read_text("utf-8").strip()
    if not TOKEN.fullmatch(text):
        raise ValueError("it holds more than a token")
    return text


def _unusable(path: Path, setting: str, error: Exception) -> BackendRefused:
    what = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return BackendRefused(f"cannot use {path}: {what}", f"the path comes from the setting {setting}")
