"""Function: the handle that `@app.function()` leaves in place of the function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, ParamSpec, TypeVar

from . import state, where
from .declarations import FunctionDeclaration
from .exception import ExecutionError, InvalidError, UnimplementedError
from .partial import Handle
from .twin import Twin
from .unavailable import Missing, Unavailable, runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import PurePosixPath

    from .process import Client
    from .secret import Secret

P = ParamSpec("P")
R = TypeVar("R")
_COMMANDS = "See `modalnomad app --help` and `modalnomad container --help`"


class Function(Handle, Generic[P, R]):
    """One Function of an App, or (from `Function.from_name`) a reference to one that is deployed.

    Its function can be run here with `.local(…)`. Web endpoints have a URL; calls between Functions (`.remote` and its
    kin) are not available on this platform and raise UnimplementedError.
    """

    def __init__(
        self,
        declaration: FunctionDeclaration | None,
        tag: str,
        *,
        app: Any = None,
        call: Callable[..., Any] | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.tag = tag
        self._declaration = declaration
        self._app = app
        self._call = call
        self._endpoint = endpoint
        if call is not None:
            self.__name__ = getattr(call, "__name__", tag)
            self.__doc__ = call.__doc__
            self.__module__ = getattr(call, "__module__", "")

    @classmethod
    def from_name(
        cls,
        app_name: str,
        name: str,
        *,
        version: int | None = None,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> Function[..., Any]:
        """A reference to a Function of a deployed App. Nothing is looked up before it is used."""
        if "." in name:
            raise InvalidError(
                f"{where.caller()}: Function.from_name({app_name!r}, {name!r}): methods are reached by their class: "
                f"modal.Cls.from_name({app_name!r}, {name.split('.', maxsplit=1)[0]!r})"
            )
        return Function(None, f"{app_name}/{name}")

    @classmethod
    def from_id(cls, function_id: str, *, client: Client | None = None) -> Function[..., Any]:
        """A reference to a deployed Function by its id."""
        return Function(None, function_id)

    @property
    def app(self) -> Any:
        """The App it belongs to."""
        if self._app is None:
            raise ExecutionError(
                f"{where.caller()}: `{self.tag}` is a reference to a deployed Function; its App is not here"
            )
        return self._app

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, in this process; of an `asgi_app` this gives the app object."""
        if self._call is None:
            raise ExecutionError(
                f"{where.caller()}: `{self.tag}` is a reference to a deployed Function; its code is not here, so "
                ".local() has nothing to run"
            )
        result: R = self._call(*args, **kwargs)
        return result

    @Twin
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in another replica. Not available."""
        self._no_calls("remote")

    @Twin
    def remote_gen(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Run a generator in another replica. Not available."""
        self._no_calls("remote_gen")

    @Twin
    def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionCall:
        """Start the function in another replica and go on. Not available."""
        self._no_calls("spawn")

    @Twin
    def map(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Iterator[Any]:
        """Run the function for every item. Not available."""
        self._no_calls("map")

    @Twin
    def starmap(
        self,
        input_iterator: Iterable[Sequence[Any]],
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Iterator[Any]:
        """Run the function for every tuple of arguments. Not available."""
        self._no_calls("starmap")

    @Twin
    def for_each(
        self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False
    ) -> None:
        """Run the function for every item and drop the results. Not available."""
        self._no_calls("for_each")

    @Twin
    def spawn_map(self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}) -> None:
        """Start the function for every item. Not available."""
        self._no_calls("spawn_map")

    @Twin
    def experimental_spawn_map(self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}) -> FunctionCall:
        """Start the function for every item. Not available."""
        self._no_calls("experimental_spawn_map")

    def _no_calls(self, method: str) -> NoReturn:
        place = where.caller()
        if self._endpoint is not None:
            raise InvalidError(
                f"{place}: `{self.tag}` is a web endpoint (a webhook), which .{method}() cannot call: send a request "
                f"to its web URL (`{self.tag}.get_web_url()`), or run it here with .local()"
            )
        raise UnimplementedError(
            f"{place}: `{self.tag}.{method}()` would run the function in another replica, which this platform does not "
            f"do yet: `{self.tag}.local(…)` runs it here"
        )

    @Twin
    def get_web_url(self) -> str | None:
        """Public URL of a web endpoint; None of any other Function. Known in a replica, once the App is served."""
        replica = state.replica()
        if replica is not None and self._call is not None:
            return replica.web_urls.get(self._endpoint) if self._endpoint is not None else None
        raise ExecutionError(
            f"{where.caller()}: the URL of `{self.tag}` is known where the App runs; here, `modalnomad serve` and "
            "`deploy` print it"
        )

    @Twin
    def update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: int | None = None,
    ) -> None:
        """Change the scaling of a deployed Function. Not available."""
        raise UnimplementedError(
            f"{where.caller()}: scaling is changed by a deploy here: set min_containers, max_containers … in "
            "@app.function(…)"
        )

    def with_options(
        self,
        *,
        cpu: float | tuple[float, float] | None = None,
        memory: int | tuple[int, int] | None = None,
        gpu: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] | None = None,
        volumes: Mapping[str | PurePosixPath, Any] = {},
        retries: Any = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: int | None = None,
        timeout: int | None = None,
        region: str | Sequence[str] | None = None,
        cloud: str | None = None,
        routing_region: str | None = None,
    ) -> Function[P, R]:
        """A variant with other options, called with `.remote`. Not available."""
        self._no_variants("with_options")

    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Function[P, R]:
        """A variant with another concurrency. Not available."""
        self._no_variants("with_concurrency")

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Function[P, R]:
        """A variant with batching. Not available."""
        self._no_variants("with_batching")

    def _no_variants(self, method: str) -> NoReturn:
        raise UnimplementedError(
            f"{where.caller()}: `{self.tag}.{method}(…)` makes a variant for .remote() calls, which this platform does "
            "not have yet: write the options into @app.function(…)"
        )

    @Twin
    def hydrate(self, client: Client | None = None) -> Function[P, R]:
        """Nothing to do for a Function of this program."""
        if self._call is None:
            self._no_calls("hydrate")
        return self

    autoscaler = Missing("Function.autoscaler", _COMMANDS)
    client = Missing("Function.client", _COMMANDS)
    get_current_stats = Missing("Function.get_current_stats", _COMMANDS)
    get_dashboard_url = Missing("Function.get_dashboard_url", _COMMANDS)
    info = Missing("Function.info", _COMMANDS)
    logs = Missing("Function.logs", _COMMANDS)
    metrics = Missing("Function.metrics", _COMMANDS)
    object_id = Missing("Function.object_id", _COMMANDS)
    stats = Missing("Function.stats", _COMMANDS)

    def __repr__(self) -> str:
        return f"Function({self.tag})"


class FunctionCall(Unavailable):
    """A call of a Function that went on by itself. Not available."""

    _runtime: ClassVar[frozenset[str]] = runtime("cancel gather get get_call_graph iter logs num_inputs")

    @classmethod
    def from_id(cls, function_call_id: str, client: Client | None = None) -> FunctionCall:
        """A call by its id."""
        return cls(function_call_id)
