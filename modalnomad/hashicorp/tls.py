"""TLS towards the servers of a cluster: whom a client believes, what it shows, and words for what goes wrong."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from modalnomad.model.errors import BackendRefused
from modalnomad.settings import ServerSettings

VARIABLES: Final = {
    "ca_cert": "CACERT",
    "client_cert": "CLIENT_CERT",
    "client_key": "CLIENT_KEY",
    "tls_server_name": "TLS_SERVER_NAME",
}
"""Fields of the settings → what follows NOMAD_ in the variables of the servers' own commands."""
OUT_OF_TIME: Final = {9, 10}
OTHER_NAMES: Final = {62, 64}
"""X509_V_ERR_… of OpenSSL: not yet valid or expired; of another host or address."""
PLAIN_TO_TLS: Final = "HTTP request to an HTTPS server"
"""So Go's servers answer (400) what is no TLS."""
HUNG_UP: Final = (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)


@dataclass(frozen=True, slots=True)
class Trust:
    """Of one server. `group`: `nomad`, its settings."""

    group: str
    context: ssl.SSLContext | None = None
    """None: the system's authorities, and no certificate of our own."""
    server_name: str | None = None
    """What its certificate is for; None: the host of its address."""
    ca_cert: Path | None = None
    client_cert: Path | None = None

    def named(self, field: str) -> str:
        """`NOMAD_CACERT (nomad.ca_cert)`."""
        return f"{self.group.upper()}_{VARIABLES[field]} ({self.group}.{field})"

    def told(self, error: BaseException, address: str, setting: str) -> tuple[str, str] | None:
        """What went wrong and what to do; None: it was not TLS. `setting`: where the address comes from."""
        if not address.startswith("https:"):
            return None
        found = failed_tls(error)
        if found is not None and not isinstance(found, ssl.SSLEOFError):
            return self._failed(found, setting)
        if any(isinstance(link, HUNG_UP) for link in _chain(error)):
            return "it hung up", f"does it run there, and speak TLS ({setting})? {self._own()}"
        return None

    def _failed(self, error: ssl.SSLError, setting: str) -> tuple[str, str]:
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._untrusted(error, setting)
        reason = (error.reason or str(error)).upper()
        if "ALERT" in reason:
            words = reason.partition("ALERT_")[2].replace("_", " ").lower() or reason.lower()
            return f"it ended the TLS handshake: {words}", self._own()
        if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
            return "it speaks no TLS there: is it http://?", f"the address comes from {setting}"
        return reason.replace("_", " ").lower(), f"the address comes from {setting}"

    def _untrusted(self, error: ssl.SSLCertVerificationError, setting: str) -> tuple[str, str]:
        what = f"its certificate is not trusted: {error.verify_message}"
        if error.verify_code in OUT_OF_TIME:
            return what, "give it a new one; or does the clock of this machine go wrong?"
        if error.verify_code in OTHER_NAMES:
            return what, f"ask by a name that is in it: {setting}, or give that name as {self.named('tls_server_name')}"
        given = "the one given is another's" if self.ca_cert is not None else "none is given"
        hint = f"is {setting} right? who signed it has to be in {self.named('ca_cert')}, a PEM file; {given}"
        return what, hint

    def _own(self) -> str:
        if self.client_cert is None:
            return f"if it wants its clients' certificates: {self.named('client_cert')}, {self.named('client_key')}"
        return (
            f"it may not take {self.client_cert}, {self.named('client_cert')}: has that expired, or was it signed by "
            "somebody whom it does not trust?"
        )


def trust_of(settings: ServerSettings, group: str, *, shows: bool = True) -> Trust:
    """`group`: `nomad`. `shows`: with our own certificate, if there is one. Raises BackendRefused for files that cannot
    be used."""
    cert, key = (settings.client_cert, settings.client_key) if shows else (None, None)
    trust = Trust(group, None, settings.tls_server_name or None, settings.ca_cert, cert)
    if cert is None and key is not None:
        raise BackendRefused(
            f"{key} is the key of a certificate that is not given", f"give that too: {trust.named('client_cert')}"
        )
    if settings.ca_cert is None and cert is None:
        return trust
    context = ssl.create_default_context()
    if settings.ca_cert is not None:
        context = _trusting(settings.ca_cert, trust.named("ca_cert"))
    if cert is not None:
        _show(context, cert, key or cert, trust)
    return Trust(group, context, trust.server_name, settings.ca_cert, cert)


def _trusting(ca_cert: Path, setting: str) -> ssl.SSLContext:
    read_pem(ca_cert, setting)
    try:
        return ssl.create_default_context(cafile=ca_cert)
    except (ssl.SSLError, ValueError) as error:
        raise BackendRefused(f"{ca_cert} holds no certificate", f"give a PEM file: {setting}") from error


def _show(context: ssl.SSLContext, cert: Path, key: Path, trust: Trust) -> None:
    of_cert, of_key = trust.named("client_cert"), trust.named("client_key")
    asked = []

    def passphrase() -> str:
        asked.append(True)
        return ""  # it would be asked for on the terminal, where nobody may be

    if "CERTIFICATE-----" not in read_pem(cert, of_cert):
        raise BackendRefused(f"{cert} holds no certificate", f"give a PEM file: {of_cert}")
    if "PRIVATE KEY-----" not in read_pem(key, of_key):
        raise BackendRefused(f"{key} holds no key", f"give a PEM file: {of_key}, without which {of_cert} is of no use")
    try:
        context.load_cert_chain(cert, key, passphrase)
    except (ssl.SSLError, OSError, ValueError) as error:
        if asked:
            raise BackendRefused(
                f"{key} has a passphrase, which nobody can be asked for", f"give one without: {of_key}"
            ) from None
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise BackendRefused(
                f"{key} is not the key of {cert}", f"give two that belong together: {of_cert}, {of_key}"
            ) from None
        raise BackendRefused(
            f"{cert} and {key} cannot be used: {getattr(error, 'reason', None) or error}",
            f"give PEM files: {of_cert}, {of_key}",
        ) from None


def read_pem(path: Path, setting: str) -> str:
    """Its text; what is no ASCII stands for nothing. `setting`: where the path comes from. Raises BackendRefused."""
    try:
        return path.read_text("ascii", "replace")
    except OSError as error:
        raise BackendRefused(f"cannot use {path}: {error.strerror}", f"the path comes from {setting}") from error


def failed_tls(error: BaseException) -> ssl.SSLError | None:
    """What it comes from, where that is TLS."""
    found = [link for link in _chain(error) if isinstance(link, ssl.SSLError)]
    return found[-1] if found else None  # aiohttp's own are some, too, without the reason


def _chain(error: BaseException) -> Iterator[BaseException]:
    """It, and what it comes from."""
    seen: list[BaseException | None] = [None]
    link: BaseException | None = error
    while link not in seen and link is not None:
        seen.append(link)
        yield link
        inner = getattr(link, "certificate_error", None) or getattr(link, "os_error", None)
        reasons = [each for each in (inner, *link.args) if isinstance(each, BaseException)]
        link = next(iter(reasons), None) or link.__cause__ or link.__context__
