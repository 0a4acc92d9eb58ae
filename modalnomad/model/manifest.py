"""What one App declares: the shape `modalnomad_sdk.describe` writes, validated and frozen.

`Description` is the whole file (values of anonymous secrets included, so it is never stored or logged); `Manifest` is
the part that is kept. Durations are seconds, sizes MiB.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EndpointKind = Literal["fastapi_endpoint", "asgi_app", "wsgi_app", "web_server"]
ParameterType = Literal["str", "int", "bool", "bytes"]


class Model(BaseModel):
    """Base of all stored shapes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Endpoint(Model):
    """One web function of a Function or Cls: one label, one URL."""

    name: str
    """`f` for a Function, `Server.files` for a method; unique in the App."""
    method_name: str | None = None
    """Attribute of the class; None for a Function."""
    kind: EndpointKind
    where: str = ""
    """`file.py:12` of the decorator."""
    method: str = "GET"
    """HTTP verb; only of fastapi_endpoint."""
    label: str | None = None
    custom_domains: tuple[str, ...] = ()
    docs: bool = False
    requires_proxy_auth: bool = False
    port: int | None = None
    """Only of web_server."""
    port_timeout: float | None = None
    """web_server(startup_timeout=…)."""


class Parameter(Model):
    """One `modal.parameter()` of a Cls. A bytes default is {"bytes": base64}."""

    name: str
    type: ParameterType
    has_default: bool = False
    default: Any = None


class Scaling(Model):
    """How many replicas a pool may and should have."""

    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window: float = 60.0
    max_inputs: int = 1
    target_inputs: int | None = None

    @property
    def target(self) -> int:
        """Requests a replica is meant to hold before another is started."""
        return self.target_inputs or self.max_inputs


class Resources(Model):
    """Requests and limits; None: the platform's default."""

    cpu: tuple[float, float | None] | None = None
    memory: tuple[int, int | None] | None = None
    gpu: tuple[str, ...] = ()
    """Ordered choices, upper-case, each `TYPE` or `TYPE:count`."""
    ephemeral_disk: int | None = None


class SecretRef(Model):
    """A secret by name in an environment, or an anonymous one by the digest of its content."""

    name: str | None = None
    anonymous: str | None = None
    required_keys: tuple[str, ...] = ()
    environment: str | None = None


class ImageStep(Model):
    """One step of an Image chain: `kind` is the SDK method's name, `arguments` its JSON-able arguments.

    Files a step needs (requirements, local files copied in, …) stand in `files` as local absolute paths.
    """

    kind: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    files: tuple[str, ...] = ()
    where: str = ""


class Mount(Model):
    """Local files that join the bundle at `remote` (absolute, under the replica's root folder /root, or elsewhere)."""

    kind: Literal["file", "dir", "python"]
    local: str
    remote: str
    ignore: tuple[str, ...] = ()
    where: str = ""


class Image(Model):
    """A chain of steps from a base."""

    base: str = "debian_slim"
    """debian_slim, micromamba, from_registry, from_dockerfile, from_scratch, …"""
    base_arguments: dict[str, Any] = Field(default_factory=dict)
    python_version: str | None = None
    steps: tuple[ImageStep, ...] = ()
    mounts: tuple[Mount, ...] = ()
    """add_local_* with copy=False."""
    where: str = ""


class Schedule(Model):
    """Cron(expression, timezone) or Period(seconds)."""

    kind: Literal["cron", "period"]
    cron: str | None = None
    timezone: str = "UTC"
    period: dict[str, float] = Field(default_factory=dict)


class Retries(Model):
    """How often a failed call is tried again. Seconds."""

    max_retries: int = Field(ge=0)
    backoff_coefficient: float = 1.0
    initial_delay: float = 1.0
    max_delay: float = 60.0

    def delay(self, retry: int) -> float:
        """Seconds before the first retry (0), the second (1), …; a second at least, as in Modal."""
        longest = max(self.max_delay, 1.0)
        if self.backoff_coefficient > 1 and retry > 64:  # far past any limit, and no float holds the power
            return longest
        return min(max(self.initial_delay * self.backoff_coefficient**retry, 1.0), longest)


class Function(Model):
    """A Function or a Cls: one revision, one autoscaled pool per set of parameter values, one or more endpoints."""

    tag: str
    where: str = ""
    is_class: bool = False
    endpoints: tuple[Endpoint, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    methods: tuple[str, ...] = ()
    """Names of `modal.method`s, for a Cls."""
    scaling: Scaling = Scaling()
    timeout: float = 300.0
    startup_timeout: float | None = None
    resources: Resources = Resources()
    secrets: tuple[SecretRef, ...] = ()
    image: Image | None = None
    schedule: Schedule | None = None
    retries: Retries | None = None
    include_source: bool = True
    single_use: bool = False
    block_network: bool = False

    @property
    def start_limit(self) -> float:
        """Seconds a start may take: `startup_timeout`, else `timeout`."""
        return self.startup_timeout if self.startup_timeout is not None else self.timeout

    @property
    def web_ports(self) -> tuple[int, ...]:
        """Fixed ports of the web_server endpoints."""
        return tuple(e.port for e in self.endpoints if e.port is not None)


class Source(Model):
    """How the module is loaded: design §3."""

    mode: Literal["script", "module"]
    entry: str
    """script: file name relative to `root`; module: dotted name."""
    root: str
    """Absolute folder that is first on sys.path; in module mode the parent of the top-level package."""
    module: str
    """Name the module has when imported."""


class Notice(Model):
    """Something accepted without effect here, or a warning: said once at deploy."""

    code: str
    message: str
    where: str = ""


class Refusal(Model):
    """Something that cannot be kept and would change the program's meaning: deploy stops with it."""

    code: str
    message: str
    where: str = ""


class Manifest(Model):
    """Everything one App declares, without values of secrets."""

    schema_version: Literal[1] = 1
    name: str | None
    tags: dict[str, str] = Field(default_factory=dict)
    source: Source
    functions: tuple[Function, ...] = ()
    entrypoints: tuple[str, ...] = ()


class Description(Model):
    """The file `describe` writes."""

    contract: Literal[1]
    sdk_version: str
    python: str
    """`3.11`."""
    app: Manifest
    notices: tuple[Notice, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    anonymous_secrets: Annotated[dict[str, dict[str, str]], Field(repr=False)] = Field(default_factory=dict)
    """SHA-256 of canonical JSON → key → value."""
    watched: tuple[str, ...] = ()
    """Absolute paths of local files and folders whose change makes a new revision."""
