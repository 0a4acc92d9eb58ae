"""App: a namespace of Functions and classes. Its decorators record declarations; nothing is started here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from . import state, where
from .cls import Cls
from .declarations import FunctionDeclaration
from .declare import declare_class, declare_function, declare_server
from .entrypoints import LocalEntrypoint
from .exception import InvalidError, UnimplementedError
from .functions import Function
from .image import Image
from .notices import note
from .options import check_secrets, make_options, modernise
from .parameters import dataclass_transform, parameter
from .partial import PartialFunction
from .sandbox import Server
from .secret import Secret
from .storage import check_volumes
from .twin import Twin
from .unavailable import Missing

if TYPE_CHECKING:
    from .process import Client
    from .retries import Retries
    from .schedule import Schedule
    from .storage import CloudBucketMount, NetworkFileSystem, Proxy, Volume


P = ParamSpec("P")
R = TypeVar("R")

_APP_COMMANDS = "See `modalnomad app --help`"
_CLS_DEFAULTS: dict[str, Any] = {"network_file_systems": {}, "retries": None, "timeout": 300}


class FunctionDecorator:
    """What `app.function(…)` returns."""

    def __init__(self, app: App, arguments: dict[str, Any], place: str) -> None:
        self._app, self._arguments, self._place = app, arguments, place

    def __call__(self, function: PartialFunction[P, R] | Callable[P, R]) -> Function[P, R]:
        arguments, function = modernise(self._arguments, function, self._place, "app.function")
        arguments = self._app._with_defaults(arguments)
        options = make_options(arguments, self._place, "app.function")
        declaration = declare_function(function, arguments["name"], options, self._place)
        self._app._register(declaration)
        endpoint = declaration.endpoints[0].name if declaration.endpoints else None
        return Function(declaration, declaration.tag, app=self._app, call=declaration.target, endpoint=endpoint)


class App:
    """A namespace of Functions and classes, deployed together.

    Args:
        name: 1 to 64 letters, digits, dashes, dots, underscores; without one it is called as its file.
        tags: texts that belong to the App.
        image: of every Function that names none.
        secrets: of every Function, before its own.
        volumes: of every Function.
        include_source: take the program's source into replicas.

    Raises:
        InvalidError: an argument of the wrong type.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        tags: dict[str, str] | None = None,
        image: Image | None = None,
        secrets: Sequence[Secret] = [],
        volumes: Mapping[str | PurePosixPath, Volume] = {},
        include_source: bool = True,
    ) -> None:
        place = where.caller()
        if name is not None and not isinstance(name, str):
            raise InvalidError(f"{place}: App(name={name!r}): a text is needed")
        if image is not None and not isinstance(image, Image):
            raise InvalidError(f"{place}: App(image={image!r}): a modal.Image is needed")
        self._name = name
        self._tags = dict(tags or {})
        self._image = image
        self._secrets = check_secrets(secrets, place, "App")
        self._volumes = check_volumes(volumes, place, "App")
        self._include_source = include_source
        self.where = place
        self.declarations: dict[str, FunctionDeclaration] = {}
        self.entrypoints: dict[str, LocalEntrypoint] = {}
        self.included: list[App] = []

    @property
    def name(self) -> str | None:
        """Its name, if it has one."""
        return self._name

    description = name

    @property
    def app_id(self) -> str | None:
        """None: an App has an id only where it runs."""
        return None

    def function(
        self,
        *,
        image: Image | None = None,
        schedule: Schedule | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | list[str] | None = None,
        serialized: bool = False,
        network_file_systems: Mapping[str | PurePosixPath, NetworkFileSystem] = {},
        volumes: Mapping[str | PurePosixPath, Volume | CloudBucketMount] = {},
        cpu: float | tuple[float, float] | None = None,
        memory: int | tuple[int, int] | None = None,
        ephemeral_disk: int | None = None,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: int | None = None,
        proxy: Proxy | None = None,
        retries: int | Retries | None = None,
        timeout: int = 300,
        startup_timeout: int | None = None,
        name: str | None = None,
        is_generator: bool | None = None,
        cloud: str | None = None,
        region: str | Sequence[str] | None = None,
        routing_region: str | None = None,
        nonpreemptible: bool = False,
        enable_memory_snapshot: bool = False,
        block_network: bool = False,
        restrict_modal_access: bool = False,
        single_use_containers: bool = False,
        i6pn: bool | None = None,
        include_source: bool | None = None,
        experimental_options: dict[str, Any] | None = None,
        max_inputs: int | None = None,
        keep_warm: int | None = None,
        concurrency_limit: int | None = None,
        container_idle_timeout: int | None = None,
        allow_concurrent_inputs: int | None = None,
    ) -> FunctionDecorator:
        """Register a function with this App. See docs/differences.md for what each argument does here.

        Raises:
            InvalidError, TypeError: when applied; the message names the line and what to write.
        """
        arguments = {key: value for key, value in locals().items() if key != "self"}
        return FunctionDecorator(self, arguments, where.caller())

    @dataclass_transform(kw_only_default=True, field_specifiers=(parameter,))
    def cls(
        self,
        *,
        image: Image | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | list[str] | None = None,
        serialized: bool = False,
        network_file_systems: Mapping[str | PurePosixPath, NetworkFileSystem] = {},
        volumes: Mapping[str | PurePosixPath, Volume | CloudBucketMount] = {},
        cpu: float | tuple[float, float] | None = None,
        memory: int | tuple[int, int] | None = None,
        ephemeral_disk: int | None = None,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: int | None = None,
        proxy: Proxy | None = None,
        retries: int | Retries | None = None,
        timeout: int = 300,
        startup_timeout: int | None = None,
        cloud: str | None = None,
        region: str | Sequence[str] | None = None,
        routing_region: str | None = None,
        nonpreemptible: bool = False,
        enable_memory_snapshot: bool = False,
        block_network: bool = False,
        restrict_modal_access: bool = False,
        single_use_containers: bool = False,
        i6pn: bool | None = None,
        include_source: bool | None = None,
        experimental_options: dict[str, Any] | None = None,
        max_inputs: int | None = None,
        keep_warm: int | None = None,
        concurrency_limit: int | None = None,
        container_idle_timeout: int | None = None,
        allow_concurrent_inputs: int | None = None,
    ) -> Callable[[PartialFunction[..., Any] | type[Any]], Any]:
        """Register a class with this App: its replicas are instances of it.

        Raises:
            InvalidError, TypeError: when applied; the message names the line and what to write.
        """
        arguments = {key: value for key, value in locals().items() if key != "self"}
        place = where.caller()

        def decorate(cls: PartialFunction[..., Any] | type[Any]) -> Cls:
            given, target = modernise(arguments, cls, place, "app.cls")
            declaration = declare_class(target, make_options(self._with_defaults(given), place, "app.cls"), place)
            self._register(declaration)
            return Cls(declaration, declaration.tag, app=self)

        return decorate

    def server(
        self,
        *,
        image: Image | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | list[str] | None = None,
        serialized: bool = False,
        volumes: Mapping[str | PurePosixPath, Volume | CloudBucketMount] = {},
        cpu: float | tuple[float, float] | None = None,
        memory: int | tuple[int, int] | None = None,
        ephemeral_disk: int | None = None,
        target_concurrency: float | None = None,
        max_concurrency: int | None = None,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaleup_window: int | None = None,
        scaledown_window: int | None = None,
        startup_timeout: int = 30,
        name: str | None = None,
        port: int = 8000,
        unauthenticated: bool = False,
        h2_enabled: bool = False,
        exit_grace_period: int = 0,
        routing_region: str = "us-east",
        compute_region: str | Sequence[str] | None = None,
        cloud: str | None = None,
        nonpreemptible: bool = False,
        proxy: Proxy | None = None,
        i6pn: bool | None = None,
        enable_memory_snapshot: bool = False,
        include_source: bool | None = None,
        experimental_options: dict[str, Any] | None = None,
    ) -> Callable[[PartialFunction[..., Any] | type[Any]], Any]:
        """A class that starts an HTTP server. Refused at deploy: use `@app.cls()` with `@modal.web_server(port)`."""
        arguments = {**_CLS_DEFAULTS, **{key: value for key, value in locals().items() if key != "self"}}
        arguments["region"] = compute_region
        place = where.caller()

        def decorate(cls: PartialFunction[..., Any] | type[Any]) -> Server:
            options = make_options(self._with_defaults(arguments), place, "app.server")
            declaration = declare_server(cls, name, options, place)
            self._register(declaration)
            return Server(declaration.tag)

        return decorate

    def local_entrypoint(self, *, name: str | None = None) -> Callable[[Callable[..., Any]], LocalEntrypoint]:
        """A function that runs on the user's machine. Listed at deploy, not used by web endpoints."""
        place = where.caller()
        if name is not None and not isinstance(name, str):
            raise InvalidError(f"{place}: local_entrypoint(name={name!r}): a text is needed")

        def decorate(function: Callable[..., Any]) -> LocalEntrypoint:
            if isinstance(function, type) or not callable(function):
                raise InvalidError(f"{place}: @app.local_entrypoint() goes on a function, not on {function!r}")
            tag = name if name is not None else function.__qualname__
            if tag in self.entrypoints:
                raise InvalidError(f"{place}: this App has a local entrypoint `{tag}` already: give one of them a name")
            self.entrypoints[tag] = LocalEntrypoint(function, tag, self)
            return self.entrypoints[tag]

        return decorate

    def include(self, /, other_app: App, inherit_tags: bool = True) -> App:
        """Take over the Functions and classes of another App (and its tags)."""
        self.included.append(other_app)
        for declaration in other_app.declarations.values():
            self._register(declaration)
        if inherit_tags:
            self._tags = {**other_app._tags, **self._tags}
        return self

    def _with_defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`arguments` with what the App itself says."""
        found = dict(arguments)
        found["image"] = found["image"] if found["image"] is not None else self._image
        if isinstance(found["secrets"], (list, tuple, set, frozenset)) or found["secrets"] is None:
            found["secrets"] = [*self._secrets, *(found["secrets"] or ())]
        if isinstance(found["volumes"], Mapping):
            found["volumes"] = {**self._volumes, **found["volumes"]}
        if found["include_source"] is None:
            found["include_source"] = self._include_source
        return found

    def _register(self, declaration: FunctionDeclaration) -> None:
        older = self.declarations.pop(declaration.tag, None)
        if older is not None:
            note(
                "duplicate",
                f"two Functions are named `{declaration.tag}` ({older.where} and {declaration.where}): the last one "
                "wins; give one of them another name",
                declaration.where,
            )
        self.declarations[declaration.tag] = declaration

    @property
    def registered_functions(self) -> dict[str, FunctionDeclaration]:
        """Functions by tag."""
        return {tag: one for tag, one in self.declarations.items() if not one.is_class}

    @property
    def registered_classes(self) -> dict[str, FunctionDeclaration]:
        """Classes by tag."""
        return {tag: one for tag, one in self.declarations.items() if one.is_class}

    @property
    def registered_entrypoints(self) -> dict[str, LocalEntrypoint]:
        """Local entrypoints by tag."""
        return dict(self.entrypoints)

    @property
    def registered_web_endpoints(self) -> list[str]:
        """Names of all web endpoints: `f`, `Server.files`."""
        return [endpoint.name for one in self.declarations.values() for endpoint in one.endpoints]

    @Twin
    def run(
        self,
        *,
        name: str | None = None,
        client: Client | None = None,
        detach: bool = False,
        interactive: bool = False,
        environment_name: str | None = None,
    ) -> NoReturn:
        """Not available from code: use `modalnomad serve`."""
        _from_code("run", "serve")

    @Twin
    def deploy(
        self,
        *,
        name: str | None = None,
        environment_name: str | None = None,
        tag: str = "",
        client: Client | None = None,
        strategy: str = "rolling",
    ) -> NoReturn:
        """Not available from code: use `modalnomad deploy`."""
        _from_code("deploy", "deploy")

    @staticmethod
    def lookup(
        name: str,
        *,
        client: Client | None = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
    ) -> App:
        """A deployed App. Not available."""
        Missing("App.lookup", "See `modalnomad app list`")()
        raise AssertionError

    info = Missing("App.info", _APP_COMMANDS)
    stats = Missing("App.stats", _APP_COMMANDS)
    stop = Missing("App.stop", _APP_COMMANDS)
    logs = Missing("App.logs", _APP_COMMANDS)
    sandboxes = Missing("App.sandboxes", _APP_COMMANDS)
    set_tags = Missing("App.set_tags", "Give the tags to App(tags=…)")
    get_tags = Missing("App.get_tags", _APP_COMMANDS)
    get_dashboard_url = Missing("App.get_dashboard_url", _APP_COMMANDS)

    def __repr__(self) -> str:
        return f"App({self._name!r})" if self._name else "App()"


def _from_code(method: str, command: str) -> NoReturn:
    place = where.caller()
    if state.loading():
        raise InvalidError(
            f"{place}: App.{method}() stands in the global scope of the module, so it would run at every import: use "
            f"`modalnomad {command}`, or put it under `if __name__ == '__main__':`"
        )
    raise UnimplementedError(f"{place}: App.{method}() is not available from code: use `modalnomad {command} <file>`")


class Stub(App):
    """Old name of App."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        note("old_name", "`modal.Stub` is now called `modal.App`; the old name still works here", where.caller())
        super().__init__(*args, **kwargs)
