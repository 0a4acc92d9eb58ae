"""What a client shows a server of the cluster, and what it believes: token and TLS out of the settings."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from modalnomad.hashicorp.http import Server
from modalnomad.hashicorp.tls import trust_of
from modalnomad.model.errors import BackendRefused
from modalnomad.settings import ServerSettings


def server_of(settings: ServerSettings, address: str, *, name: str, header: str, variables: tuple[str, str]) -> Server:
    """Whom to ask, and as who. `name`: `Nomad`, whose settings are the group `nomad`; `header`: of the token;
    `variables`: that set address and token besides. Raises BackendRefused for a file that cannot be read."""
    group = name.lower()
    token = Token(settings, f"{group}.token_file")
    of_address, of_token = variables
    return Server(
        name=name,
        address=address.rstrip("/"),
        setting=f"{of_address} ({group}.address)",
        headers=lambda: {header: now} if (now := token.now()) else {},
        trust=trust_of(settings, group),
        token_setting=f"{of_token} ({group}.token)" if settings.token_file is None else f"{group}.token_file",
    )


class Token:
    """The token of a server, as of now: who keeps its file fresh (Nomad, an agent) writes a new one before the old one
    ends. Raises BackendRefused where the file cannot be read at first. `setting`: `nomad.token_file`, for errors."""

    def __init__(self, settings: ServerSettings, setting: str) -> None:
        self._file = settings.token_file
        self._last = settings.token.get_secret_value()
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
    if not text.isprintable():
        raise ValueError("it holds more than a token")
    return text


def _unusable(path: Path, setting: str, error: Exception) -> BackendRefused:
    what = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return BackendRefused(f"cannot use {path}: {what}", f"the path comes from the setting {setting}")
