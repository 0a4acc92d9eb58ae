"""Settings: file < environment (`MODALNOMAD_<GROUP>__<FIELD>`) < flags. Read only by `wiring.py` and `cli/`.

A component gets its own group and nothing else. The reference page in `docs/configuration.md` is made from the field
docstrings: each says unit, default and what 0 or None means.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

UP_PORT = 8700
"""Where `up` listens unless it is told otherwise."""
UP_ADMIN_PORT = 8701
"""Its admin listener."""
NAMES: Final = r"^[a-zA-Z0-9_-]+(/[a-zA-Z0-9_-]+)*$"
"""Names with single slashes between them."""


class Group(BaseModel):
    """A frozen group of settings; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RouterSettings(Group):
    """What the router listens on, answers by itself, and how long it waits."""

    host: str = "127.0.0.1"
    """Address the router listens on. Anything but loopback is open to the network."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port; 0: a free one. None: 8700 for `up`, whose URLs stay the same when it restarts, else a free one."""
    tls_cert: Path | None = None
    """PEM file with the certificate and its chain, for HTTPS on `port`; None: HTTP. Needs `tls_key`."""
    tls_key: Path | None = None
    """PEM file with the private key of `tls_cert`, without a passphrase; None: HTTP."""
    domain: str = "localhost"
    """Last part of every endpoint's host name."""
    workspace: str = ""
    """First part of every endpoint's host name; empty: none."""
    head_limit: int = Field(default=65536, gt=0)
    """Bytes a request's head (request line and headers) may have; more is answered 431, a longer target 414."""
    head_timeout: float = Field(default=30.0, gt=0)
    """Seconds from the first byte of a request's head to its last; then 408 and the connection is closed."""
    idle_timeout: float = Field(default=75.0, gt=0)
    """Seconds a connection may stay open between two requests."""
    body_limit: int = Field(default=4 * 1024**3, ge=0)
    """Bytes a request's body may have; more is answered 413. 0: no limit."""
    queue_limit: int = Field(default=2000, ge=0)
    """Requests that may wait for one pool; the next one is answered 429."""
    queue_timeout: float = Field(default=600.0, gt=0)
    """Seconds a request waits while replicas are alive but full; then 503."""
    rate: float = Field(default=200.0, ge=0)
    """Requests per second and environment; 0: no limit."""
    rate_burst: float = Field(default=5.0, gt=0)
    """Seconds of `rate` (and of each of `rates`) that may be spent at once."""
    rates: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Requests per second of single endpoints, beside those of their environment: `app/endpoint`, or
    `environment/app/endpoint`, which counts before the former. A method's endpoint is named `Class.method`. 0: no limit
    of its own. As an environment variable a JSON object: `{"shop/search": 50}`."""
    max_pools: int = Field(default=1000, gt=0)
    """Pools one Function with class parameters may have at once; idle ones are evicted first, then 429."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks (CIDR) whose X-Forwarded-* headers count."""
    connect_timeout: float = Field(default=5.0, gt=0)
    """Seconds to connect to a ready replica."""
    access_log: str = ""
    """File that gets a line of JSON for each request that is over; `-`: standard output. Empty: none. A file that is
    moved away is made anew."""
    admin_host: str = "127.0.0.1"
    """Address of the admin listener: metrics, health, readiness, /debug. Nobody is asked for a password there: anything
    but loopback shows them to the network. Empty: no admin listener."""
    admin_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port of the admin listener; 0: a free one. None: `up` takes 8701, `serve` has none."""
    drain_delay: float = Field(default=0.0, ge=0)
    """Seconds between the first signal to stop, when readiness ends, and the end of accepting connections: as long as a
    load balancer takes to notice. 0: none."""
    drain_timeout: float = Field(default=30.0, ge=0)
    """Seconds a stopping router waits for requests in flight; 0: none. A stopping `serve` takes no longer than this or
    the replicas' `grace_period`, whichever is more."""

    @field_validator("rates")
    @classmethod
    def _named(cls, rates: dict[str, float]) -> dict[str, float]:
        for name in rates:
            parts = name.split("/")
            if len(parts) not in {2, 3} or not all(parts):
                raise ValueError(f"{name!r} is not app/endpoint or environment/app/endpoint")
        return rates


class ScalingSettings(Group):
    """When replicas are added, drained, and given up."""

    interval: float = Field(default=0.25, gt=0)
    """Seconds between two looks at every pool; demand for more replicas never waits for it."""
    breaker_failures: int = Field(default=3, gt=0)
    """Failed starts in a row that open a pool's breaker."""
    breaker_backoff: float = Field(default=1.0, gt=0)
    """Seconds the breaker stays open at first; doubled by each further failure."""
    breaker_backoff_max: float = Field(default=60.0, gt=0)
    """Upper end of that back-off, seconds."""
    overstay: float = Field(default=90.0, gt=0)
    """Seconds a drained replica may take to end before it is killed; more than its grace period."""
    orphan_factor: float = Field(default=3.0, ge=1)
    """A replica that no router talks to for this many scaledown windows drains itself."""


class EmbeddedSettings(Group):
    """The back end on this machine."""

    grace_period: float = Field(default=30.0, ge=0)
    """Seconds a replica may take to finish after SIGTERM or a drain; then it is killed."""
    network: Literal["auto", "namespace", "exclusive", "host"] = "auto"
    """How a fixed `web_server` port is kept apart from other replicas'. auto: namespace where allowed, else exclusive.
    host: on the host's network, open to whatever address the program binds."""
    max_replicas: int = Field(default=100, ge=0)
    """Replicas one `serve` or `up` may run at once; past it an idle pool gives way, else 503 no_capacity. 0: any."""
    limits: Literal["auto", "off"] = "auto"
    """auto: each replica gets control groups of its own where the system allows it (Linux: as root, or in a group that
    systemd delegated); they hold the limits of memory=(…, limit), cpu=(…, limit) and `max_processes`. off: none."""
    max_processes: int = Field(default=4096, ge=0)
    """Processes and threads one replica may have at once, where `limits` can be set. 0: any."""
    log_lines: int = Field(default=10_000, ge=0)
    """Lines kept of each replica's output."""
    log_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Bytes of log files that `up` keeps of each App; the oldest lines go. 0: it writes none."""
    log_days: float = Field(default=14.0, ge=0)
    """Days after which log files go whatever their size. 0: never."""
    templates: bool = False
    """Keep a warm process per image in use, which replicas are forked from: cold starts after the first one take about
    a twentieth of the time. Costs about 43 MiB of memory per image (measured with FastAPI) while it is used, see
    `template_idle`, and a second of one core to start. Linux only; elsewhere it has no effect."""
    template_idle: float = Field(default=900.0, ge=0)
    """Seconds after the last start of a replica of its image that a template is kept. 0: as long as `serve` or `up`."""
    keep_versions: int = Field(default=10, ge=1)
    """Versions of each App that are kept for `rollback`, with their source and images."""
    keep_stopped: float = Field(default=30.0, ge=0)
    """Days after which a stopped App is forgotten with all its versions. 0: never."""
    keep_images: float = Field(default=7.0, ge=0)
    """Days an image is kept after its last use when no kept version of any App needs it."""


class ServerSettings(Group):
    """How one of the cluster's servers is reached."""

    token: SecretStr = SecretStr("")
    """Sent with each request; empty: none."""
    token_file: Path | None = None
    """File that holds the token; None: `token` counts. Whoever renews the token may write it there: what runs reads it
    again."""
    ca_cert: Path | None = None
    """PEM file of the authority that signed the server's certificate; None: those this machine trusts."""
    client_cert: Path | None = None
    """PEM file of the client's own certificate, with `client_key`; None: none is shown."""
    client_key: Path | None = None
    """PEM file of its private key, without a passphrase."""
    tls_server_name: str = ""
    """Name that the server's certificate has to be for, such as `server.global.nomad`; empty: the host of `address`."""

    @field_validator("token_file", "ca_cert", "client_cert", "client_key", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """An empty variable takes back what the file says; as a path it would be this folder."""
        return None if value == "" else value


class NomadSettings(ServerSettings):
    """Nomad, which runs replicas (back end hashicorp)."""

    address: str = "http://127.0.0.1:4646"
    """URL of any of its agents. NOMAD_ADDR is honoured, as are NOMAD_TOKEN, NOMAD_REGION, NOMAD_CACERT,
    NOMAD_CLIENT_CERT, NOMAD_CLIENT_KEY and NOMAD_TLS_SERVER_NAME."""
    region: str = ""
    """Region of the jobs; empty: the agent's own."""
    datacenters: tuple[str, ...] = ("*",)
    """Where replicas may run; `*` stands for any letters."""
    node_pool: str = "default"
    """Node pool replicas run in."""
    driver: Literal["raw_exec", "docker"] = "raw_exec"
    """What starts a replica on a node: raw_exec: a process in an environment made there; docker: a container."""
    python: str = "python3"
    """Python 3.10 or newer that starts replicas on the nodes (raw_exec): a name on their PATH or an absolute path."""
    node_store: str = "/var/lib/modalnomad"
    """Folder on each node for environments and the runner (raw_exec)."""
    cpu: int = Field(default=100, gt=0)
    """MHz reserved for a replica of a Function without cpu=."""
    memory: int = Field(default=256, ge=10)
    """MiB reserved for a replica of a Function without memory=."""
    core_mhz: int = Field(default=1000, gt=0)
    """MHz that stand for one core of cpu=."""
    grace_period: float = Field(default=30.0, ge=0)
    """Seconds a replica may take to finish after SIGTERM or a drain. Nodes cut it at their `max_kill_timeout`."""
    keep_versions: int = Field(default=10, ge=1)
    """Versions of each App that are kept for `rollback`, with their jobs and bundles."""
    log_files: int = Field(default=3, ge=1)
    """Files of 10 MB that a node keeps of each stream of a replica's output."""


DEFAULT_PREFIX: Final = "modalnomad"
"""Of keys in Consul."""


class ConsulSettings(ServerSettings):
    """Consul, which tells routers what is served and where replicas are."""

    address: str = "http://127.0.0.1:8500"
    """URL of an agent. CONSUL_HTTP_ADDR is honoured, as are CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE, CONSUL_HTTP_SSL,
    CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY and CONSUL_TLS_SERVER_NAME."""
    prefix: str = Field(default=DEFAULT_PREFIX, pattern=NAMES)
    """Keys of the platform begin with this and a slash."""
    auth_method: str = Field(default="nomad-workloads", pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    """Its auth method for identities that Nomad signs: `task_auth_method` of Nomad's agents. For routers that run as a
    job."""
    login_file: Path | None = None
    """File that holds an identity for Consul that Nomad signed, and keeps fresh: with it a router logs in anew once
    Consul no longer knows its token. None: it does not."""
    reconcile: float = Field(default=60.0, gt=0)
    """Seconds after which everything is read anew, whatever the watches said."""


class VaultSettings(ServerSettings):
    """Vault or OpenBao, which keeps secrets."""

    address: str = "http://127.0.0.1:8200"
    """URL. VAULT_ADDR is honoured, as are VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT, VAULT_CLIENT_CERT,
    VAULT_CLIENT_KEY and VAULT_TLS_SERVER_NAME."""
    namespace: str = ""
    """Of Vault Enterprise or OpenBao; empty: the root."""
    mount: str = Field(default="secret", pattern=NAMES)
    """Mount of the key-value store, version 2."""
    auth_mount: str = Field(default="jwt-nomad", pattern=NAMES)
    """Mount of the login by Nomad's signed identities."""
    jwks_url: str = ""
    """Where the server reads Nomad's public keys; empty: `<nomad.address>/.well-known/jwks.json`."""
    rotation: float = Field(default=30.0, ge=0)
    """Seconds between two looks for newer versions of secrets that replicas were started with; they are then replaced
    one at a time. 0: they keep their values."""


class ArtifactSettings(Group):
    """Bundles on their way to the nodes of a cluster."""

    store: str = ""
    """Where they are kept: a folder, or the URL of a bucket (`s3://…`, `gs://…`, `az://…`; credentials come from the
    usual environment variables of each). Empty: `artifacts-store` in `home`, for a cluster of this machine only."""
    host: str = "127.0.0.1"
    """Address on which routers hand them out."""
    port: int = Field(default=8702, ge=0, le=65535)
    """Its TCP port; 0: a free one."""
    url: str = ""
    """How nodes reach that: `http://router.internal:8702`; empty: `http://<host>:<port>`."""


class DockerSettings(Group):
    """Images for Nomad's docker driver."""

    registry: str = ""
    """Where they are pushed: `registry.internal:5000/modalnomad`. Empty: nowhere, for a cluster of one machine."""
    base: str = "python:{python}-slim"
    """Image that environments start from; `{python}` becomes the wanted version, such as 3.12."""


class Settings(BaseSettings):
    """All groups."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_prefix="MODALNOMAD_", env_nested_delimiter="__", use_attribute_docstrings=True
    )

    backend: Literal["embedded", "hashicorp"] = "embedded"
    """Which back end runs what is deployed. embedded: this machine; hashicorp: Nomad, Consul, and Vault or OpenBao."""
    home: Path = Field(default_factory=lambda: default_home())  # noqa: PLW0108 - defined below
    """Folder of the embedded back end's state."""
    environment: str = "main"
    """Environment of commands without --env."""
    router: RouterSettings = RouterSettings()
    scaling: ScalingSettings = ScalingSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    nomad: NomadSettings = NomadSettings()
    consul: ConsulSettings = ConsulSettings()
    vault: VaultSettings = VaultSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    docker: DockerSettings = DockerSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """flags (init) over environment over the servers' own variables over file over defaults."""
        return init_settings, env_settings, StandardVariables(settings_cls), FileSource(settings_cls)


STANDARD: Final = {
    "NOMAD_ADDR": ("nomad", "address"),
    "NOMAD_TOKEN": ("nomad", "token"),
    "NOMAD_REGION": ("nomad", "region"),
    "NOMAD_CACERT": ("nomad", "ca_cert"),
    "NOMAD_CLIENT_CERT": ("nomad", "client_cert"),
    "NOMAD_CLIENT_KEY": ("nomad", "client_key"),
    "NOMAD_TLS_SERVER_NAME": ("nomad", "tls_server_name"),
    "CONSUL_HTTP_ADDR": ("consul", "address"),
    "CONSUL_HTTP_TOKEN": ("consul", "token"),
    "CONSUL_HTTP_TOKEN_FILE": ("consul", "token_file"),
    "CONSUL_CACERT": ("consul", "ca_cert"),
    "CONSUL_CLIENT_CERT": ("consul", "client_cert"),
    "CONSUL_CLIENT_KEY": ("consul", "client_key"),
    "CONSUL_TLS_SERVER_NAME": ("consul", "tls_server_name"),
    "VAULT_ADDR": ("vault", "address"),
    "VAULT_TOKEN": ("vault", "token"),
    "VAULT_NAMESPACE": ("vault", "namespace"),
    "VAULT_CACERT": ("vault", "ca_cert"),
    "VAULT_CLIENT_CERT": ("vault", "client_cert"),
    "VAULT_CLIENT_KEY": ("vault", "client_key"),
    "VAULT_TLS_SERVER_NAME": ("vault", "tls_server_name"),
}
"""Variables that the servers' own commands honour → group and field."""


class StandardVariables(PydanticBaseSettingsSource):
    """NOMAD_ADDR and its like. An address without a scheme gets http, or https with CONSUL_HTTP_SSL."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Unused: all are read at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, dict[str, str]] = {}
        for variable, (group, name) in STANDARD.items():
            if value := os.environ.get(variable):
                if name == "address" and "://" not in value:
                    secure = group == "consul" and os.environ.get("CONSUL_HTTP_SSL", "").lower() in {"1", "true"}
                    value = f"{'https' if secure else 'http'}://{value}"
                found.setdefault(group, {})[name] = value
        return found


class FileSource(PydanticBaseSettingsSource):
    """`MODALNOMAD_CONFIG`, else `modalnomad/config.toml` in the user's configuration folder. A token that was given
    before counts more than the `token_file` of that server there."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Unused: the whole file is read at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = config_file()
        found = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
        for group, given in self.current_state.items():
            if isinstance(given, dict) and given.get("token") and isinstance(table := found.get(group), dict):
                table.pop("token_file", None)
        return found


def config_file() -> Path:
    """Where the settings file is looked for."""
    if named := os.environ.get("MODALNOMAD_CONFIG"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "modalnomad" / "config.toml"


def default_home() -> Path:
    """`MODALNOMAD_HOME`, else `modalnomad` in the user's data folder."""
    if named := os.environ.get("MODALNOMAD_HOME"):
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "modalnomad"
