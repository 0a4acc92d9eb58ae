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
    token_setting = token_setting_of(settings, group, of_token)
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
        (parts.hostname or "").encode("idna")
    except ValueError:  # a port that is none, a name that none can be
        good = False
    if not good:
        raise BackendRefused(
            f"{address!r} is no address of a server: {setting}", "write http://host:port, or https://host:port"
        )
    return address.rstrip("/")


def token_setting_of(settings: ServerSettings, group: str, variable: str) -> str:
    """Which one the token comes from; `variable`: that of the token itself."""
    return variable if settings.token_file is None else f"{group}.token_file"


class Token:
    """The token of a server, as of now: who keeps its file fresh (Nomad, an agent) writes a new one before the old one
    ends. Raises BackendRefused where the file cannot be read at first, or there is no token in it. `setting`: where it
    comes from, for errors."""

    def __init__(self, settings: ServerSettings, setting: str) -> None:
        self._file, self._setting = settings.token_file, setting
        self.origin = setting if self._file is None else f"{self._file} ({setting})"
        """In words."""
        self._last = self._read(self._file) if self._file else self._checked(settings.token.get_secret_value())

    def now(self) -> str:
        """Empty: none. What was read before stands for a file that cannot be read, or holds no token."""
        if self._file is not None:
            # Nomad writes it in place: for a moment it is empty.
            with suppress(BackendRefused):
                self._last = self._read(self._file) or self._last
        return self._last

    def _read(self, file: Path) -> str:
        try:
            text = file.read_text("ascii", "replace").strip()
        except (OSError, ValueError) as error:  # ValueError: a path that none can be
            what = getattr(error, "strerror", None) or str(error)
            raise BackendRefused(
                f"cannot use {file}: {what}", f"the path comes from the setting {self._setting}"
            ) from error
        return self._checked(text)

    def _checked(self, text: str) -> str:
        if not TOKEN.fullmatch(text):
            raise BackendRefused(
                f"{self.origin} holds no token: there are blanks, line ends or other letters in it", "correct it"
            )
        return text
