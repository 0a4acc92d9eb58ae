"""What a program declares: frozen records that the decorators make, `describe` writes out and the runner serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .image import Image
    from .retries import Retries
    from .schedule import Schedule
    from .secret import Secret

EndpointKind = Literal["fastapi_endpoint", "asgi_app", "wsgi_app", "web_server"]
ParameterType = Literal["str", "int", "bool", "bytes"]


@dataclass(frozen=True)
class EndpointDeclaration:
    """One web function: one label, one URL."""

    name: str
    """`f`, or `Server.files` for a method of a Cls."""
    method_name: str | None
    """Attribute of the class; None for a Function."""
    kind: EndpointKind
    method: str = "GET"
    """HTTP verb; only of fastapi_endpoint."""
    label: str | None = None
    custom_domains: tuple[str, ...] = ()
    docs: bool = False
    requires_proxy_auth: bool = False
    port: int | None = None
    """Only of web_server."""
    port_timeout: float | None = None
    """Seconds a web_server may take to accept on its port."""
    where: str = ""


@dataclass(frozen=True)
class ParameterDeclaration:
    """One `modal.parameter()` of a class."""

    name: str
    type: ParameterType
    has_default: bool = False
    default: str | int | bool | bytes | None = None


@dataclass(frozen=True)
class FunctionOptions:
    """Arguments of `app.function` or `app.cls`, checked; `image`, `secrets` and `volumes` with those of the App.

    Seconds, MiB, physical cores. None: not given.
    """

    image: Image | None = None
    schedule: Schedule | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()
    gpu: tuple[str, ...] = ()
    """Ordered choices, each `TYPE` or `TYPE:count`, upper case."""
    serialized: bool = False
    network_file_systems: Mapping[str, Any] = field(default_factory=dict)
    volumes: Mapping[str, Any] = field(default_factory=dict)
    """Path → Volume or CloudBucketMount."""
    cpu: tuple[float, float | None] | None = None
    """(request, limit)."""
    memory: tuple[int, int | None] | None = None
    ephemeral_disk: int | None = None
    min_containers: int | None = None
    max_containers: int | None = None
    buffer_containers: int | None = None
    scaledown_window: int | None = None
    proxy: object | None = None
    retries: Retries | None = None
    timeout: float = 300
    startup_timeout: float | None = None
    is_generator: bool = False
    cloud: str | None = None
    region: tuple[str, ...] = ()
    routing_region: str | None = None
    nonpreemptible: bool = False
    enable_memory_snapshot: bool = False
    block_network: bool = False
    restrict_modal_access: bool = False
    single_use_containers: bool = False
    i6pn: bool | None = None
    include_source: bool = True
    experimental_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FunctionDeclaration:
    """A Function or a Cls."""

    tag: str
    where: str
    is_class: bool
    target: Callable[..., Any]
    """The raw function, or the user's class."""
    endpoints: tuple[EndpointDeclaration, ...] = ()
    parameters: tuple[ParameterDeclaration, ...] = ()
    methods: tuple[str, ...] = ()
    """Attribute names of `modal.method`s."""
    enters: tuple[str, ...] = ()
    """Attribute names in the order they run: `snap=True` ones first, then base classes first, in definition order."""
    exits: tuple[str, ...] = ()
    max_inputs: int = 1
    target_inputs: int | None = None
    options: FunctionOptions = FunctionOptions()
    batched: bool = False
    clustered: bool = False
    is_server: bool = False
    """Made by `app.server`."""
