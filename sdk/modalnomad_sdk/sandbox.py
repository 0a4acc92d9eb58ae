"""Sandboxes and what belongs to them: declared here, not available on this platform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from .unavailable import Missing, Unavailable, runtime

if TYPE_CHECKING:
    from .process import Client

_INSTEAD = "Run the command in the Function itself, with `subprocess`"


class Sandbox(Unavailable):
    """A container started from code."""

    _runtime: ClassVar[frozenset[str]] = runtime(
        "create create_connect_token detach exec filesystem get_tags list logs mount_image poll reload_volumes "
        "returncode set_tags snapshot_directory snapshot_filesystem stderr stdin stdout terminate tunnels "
        "unmount_image wait wait_until_ready"
    )
    _instead: ClassVar[str] = _INSTEAD

    @staticmethod
    def from_name(
        app_name: str,
        name: str,
        *,
        environment_name: str | None = None,
        include_terminated: bool = False,
        client: Client | None = None,
    ) -> Sandbox:
        """A Sandbox by its name."""
        return Sandbox(name)

    @staticmethod
    def from_id(sandbox_id: str, client: Client | None = None) -> Sandbox:
        """A Sandbox by its id."""
        return Sandbox(sandbox_id)


class SandboxSnapshot(Unavailable):
    """A saved state of a Sandbox."""

    _runtime: ClassVar[frozenset[str]] = runtime("")
    _instead: ClassVar[str] = _INSTEAD

    @classmethod
    def from_id(cls, sandbox_snapshot_id: str, client: Client | None = None) -> SandboxSnapshot:
        """A snapshot by its id."""
        return SandboxSnapshot(sandbox_snapshot_id)


class Probe:
    """How a Sandbox tells that it is ready."""

    tcp_port: int | None = None
    exec_argv: tuple[str, ...] | None = None
    interval_ms: int = 100

    def __init__(
        self, tcp_port: int | None = None, exec_argv: tuple[str, ...] | None = None, interval_ms: int = 100
    ) -> None:
        self.tcp_port = tcp_port
        self.exec_argv = exec_argv
        self.interval_ms = interval_ms

    @classmethod
    def with_tcp(cls, port: int, *, interval_ms: int = 100) -> Probe:
        """Ready when the port accepts."""
        return cls(tcp_port=port, interval_ms=interval_ms)

    @classmethod
    def with_exec(cls, *argv: str, interval_ms: int = 100) -> Probe:
        """Ready when the command succeeds."""
        return cls(exec_argv=argv, interval_ms=interval_ms)


class SchedulerPlacement:
    """Where a Sandbox may run."""

    def __init__(
        self,
        region: str | Sequence[str] | None = None,
        zone: str | None = None,
        spot: bool | None = None,
        instance_type: str | Sequence[str] | None = None,
    ) -> None:
        self.region = region
        self.zone = zone
        self.spot = spot
        self.instance_type = instance_type


class Cluster(Unavailable):
    """A gang of containers."""

    _runtime: ClassVar[frozenset[str]] = runtime("from_context container_ids container_ips container_rank")

    @staticmethod
    def from_id(cluster_id: str, *, client: Client | None = None) -> Cluster:
        """A cluster by its id."""
        return Cluster(cluster_id)


class Server(Unavailable):
    """Handle of an `app.server`."""

    _runtime: ClassVar[frozenset[str]] = frozenset(
        (
            "autoscaler",
            "get_url",
            "hydrate",
            "info",
            "logs",
            "metrics",
            "object_id",
            "sessions",
            "stats",
            "update_autoscaler",
        )
    )
    _instead: ClassVar[str] = "Use @app.cls() with @modal.web_server(port)"

    @staticmethod
    def from_name(
        app_name: str, name: str, *, environment_name: str | None = None, client: Client | None = None
    ) -> Server:
        """A server by its name."""
        return Server(name)

    @staticmethod
    def from_id(server_id: str, *, client: Client | None = None) -> Server:
        """A server by its id."""
        return Server(server_id)


class Environment(Unavailable):
    """A namespace for Apps and Secrets."""

    _runtime: ClassVar[frozenset[str]] = runtime("apps billing from_context members name objects roles")
    _instead: ClassVar[str] = "Name the environment on the command line, with --env"

    @staticmethod
    def from_name(name: str, *, create_if_missing: bool = False, client: Client | None = None) -> Environment:
        """An environment by its name."""
        return Environment(name)


class Workspace(Unavailable):
    """The account."""

    _runtime: ClassVar[frozenset[str]] = runtime(
        "billing from_context member_tokens members name proxy_tokens service_users settings"
    )
    _instead: ClassVar[str] = "Proxy tokens are made with `modalnomad token create`"


billing = Missing("billing", "There is nothing to pay here")
