"""Questions about the process that the code runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from . import state
from .unavailable import Missing, Unavailable, runtime


class Client(Unavailable):
    """A connection to the vendor's platform; accepted where the API has a `client` argument, and not used."""

    _runtime: ClassVar[frozenset[str]] = runtime("close from_oauth_credentials hello is_closed verify")

    @classmethod
    def from_env(cls) -> Client:
        """A client from this process's environment."""
        return cls()

    @classmethod
    def from_credentials(cls, token_id: str, token_secret: str) -> Client:
        """A client from a token, which is not kept."""
        return cls()


class Tunnel:
    """An address under which a port of a replica would be reached from outside."""

    def __init__(self, host: str, port: int, unencrypted_host: str, unencrypted_port: int) -> None:
        self.host = host
        self.port = port
        self.unencrypted_host = unencrypted_host
        self.unencrypted_port = unencrypted_port

    @property
    def url(self) -> str:
        """The public URL."""
        return f"https://{self.host}" if self.port == 443 else f"https://{self.host}:{self.port}"

    @property
    def tls_socket(self) -> tuple[str, int]:
        """Host and port that speak TLS."""
        return self.host, self.port

    @property
    def tcp_socket(self) -> tuple[str, int]:
        """Host and port without TLS."""
        return self.unencrypted_host, self.unencrypted_port


def forward(port: int, *, unencrypted: bool = False, h2_enabled: bool = False, client: Client | None = None) -> Missing:
    """A tunnel to a port of this replica. Not available: entering the context raises UnimplementedError."""
    return Missing("forward", "Use @modal.web_server(port), which gives the port a URL")


def is_local() -> bool:
    """False in a replica, True everywhere else."""
    return state.replica() is None


def current_input_id() -> str | None:
    """Id of the request that runs here now; None outside of one."""
    return state.current_input.get()


def current_function_call_id() -> str | None:
    """The same as `current_input_id`: a request is its own call."""
    return state.current_input.get()


@contextmanager
def enable_output() -> Iterator[None]:
    """Nothing to switch on: output is always shown."""
    yield


def interact() -> None:
    """An interactive session in a replica. Not available."""
    Missing("interact")()
