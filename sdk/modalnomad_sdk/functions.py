"""Function: the handle that `@app.function()` leaves in place of the function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar

from . import calling, state, where
from .declarations import FunctionDeclaration
from .exception import ExecutionError, InvalidError, UnimplementedError
from .function_call import FunctionCall
from .partial import Handle, is_generator
from .twin import Twin, TwinStream
from .unavailable import Missing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import PurePosixPath

    from .process import Client
    from .secret import Secret

__all__ = ["Function", "FunctionCall"]

P = ParamSpec("P")
R = TypeVar("R")
_NEVER = ("remote_gen", "spawn_map", "experimental_spawn_map", "hydrate")
_COMMANDS = "See `modalnomad app --help` and `modalnomad container --help`"


class Function(Handle, Generic[P, R]):
    """One Function of an App, or (from `Function.from_name`) a reference to one that is deployed.

    Its function can be run here with `.local(…)`. Web endpoints have a URL. `.remote` and its kin run other Functions
    in replicas from a local entrypoint (`modalnomad run`); elsewhere they raise UnimplementedError.
    """

    def __init__(
        self,
        declaration: FunctionDeclaration | None,
        tag: str,
        *,
        app: Any = None,
        call: Callable[..., Any] | None = None,
        endpoint: str | None = None,
        target: calling.Target | None = None,
    ) -> None:
        """`target`: what a call runs, where that is not simply the Function."""
        self.tag = tag
        self._declaration = declaration
        self._app = app
        self._call = call
        self._endpoint = endpoint
        self._target = target
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
        """Run the function in a replica and wait for what it returns; what it raises is raised here."""
        target = self._callable("remote")
        result: R = calling.value_of(calling.start(target, args, kwargs).result(), target.name)
        return result

    @remote.awaited
    async def _remote_aio(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same, for `await`."""
        import asyncio

        target = self._callable("remote")
        result: R = calling.value_of(await asyncio.wrap_future(calling.start(target, args, kwargs)), target.name)
        return result

    @Twin
    def remote_gen(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Run a generator in another replica. Not available."""
        self._no_calls("remote_gen")

    @Twin
    def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionCall:
        """Start the function in a replica and go on; `.get()` of what this gives waits for its result."""
        target = self._callable("spawn")
        return FunctionCall._started(calling.start(target, args, kwargs), target.name)

    @TwinStream
    def map(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Iterator[Any]:
        """Run the function for every item, many at once; results come as they are read."""
        target = self._callable("map")
        inputs = calling.zipped(input_iterators)
        return calling.run_map(target, inputs, kwargs, in_order=order_outputs, return_exceptions=return_exceptions)

    @map.iterated
    def _map_aio(
        self,
        *input_iterators: Any,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> AsyncIterator[Any]:
        """The same, for `async for`; the inputs may be async iterables too."""
        import asyncio

        target = self._callable("map")
        loop = asyncio.get_running_loop()
        inputs = calling.zipped(tuple(calling.readable(source, loop) for source in input_iterators))
        results = calling.run_map(target, inputs, kwargs, in_order=order_outputs, return_exceptions=return_exceptions)
        return calling.read_async(results)

    @TwinStream
    def starmap(
        self,
        input_iterator: Iterable[Sequence[Any]],
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Iterator[Any]:
        """Run the function for every tuple of arguments."""
        target = self._callable("starmap")
        inputs = (tuple(one) for one in input_iterator)
        return calling.run_map(target, inputs, kwargs, in_order=order_outputs, return_exceptions=return_exceptions)

    @starmap.iterated
    def _starmap_aio(
        self,
        input_iterator: Any,
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> AsyncIterator[Any]:
        """The same, for `async for`."""
        import asyncio

        target = self._callable("starmap")
        inputs = (tuple(one) for one in calling.readable(input_iterator, asyncio.get_running_loop()))
        results = calling.run_map(target, inputs, kwargs, in_order=order_outputs, return_exceptions=return_exceptions)
        return calling.read_async(results)

    @Twin
    def for_each(
        self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False
    ) -> None:
        """Run the function for every item and drop the results."""
        target = self._callable("for_each")
        inputs = calling.zipped(input_iterators)
        for _ in calling.run_map(target, inputs, kwargs, in_order=False, return_exceptions=ignore_exceptions):
            pass

    @for_each.awaited
    async def _for_each_aio(
        self, *input_iterators: Any, kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False
    ) -> None:
        """The same, for `await`."""
        results = self.map.aio(
            *input_iterators, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions
        )
        async for _ in results:
            pass

    @Twin
    def spawn_map(self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}) -> None:
        """Start the function for every item. Not available."""
        self._no_calls("spawn_map")

    @Twin
    def experimental_spawn_map(self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}) -> FunctionCall:
        """Start the function for every item. Not available."""
        self._no_calls("experimental_spawn_map")

    def _callable(self, method: str) -> calling.Target:
        """What is to be called. Raises InvalidError, UnimplementedError."""
        if not calling.connected() or self._endpoint is not None or self._declaration is None:
            self._no_calls(method)
        if is_generator(self._call_of_declaration()):
            raise InvalidError(
                f"{where.caller()}: `{self.tag}` is a generator, which .{method}() cannot call: return a list instead"
            )
        return self._target or calling.Target(self._declaration.tag, self.tag)

    def _call_of_declaration(self) -> Any:
        """The user's own function."""
        assert self._declaration is not None
        found: Any = self._declaration.target
        if self._target is not None:
            found = getattr(getattr_static(found, self._target.method), "raw", None)
        return found

    def _no_calls(self, method: str) -> NoReturn:
        place = where.caller()
        if self._endpoint is not None:
            raise InvalidError(
                f"{place}: `{self.tag}` is a web endpoint (a webhook), which .{method}() cannot call: send a request "
                f"to its web URL (`{self.tag}.get_web_url()`), or run it here with .local()"
            )
        raise UnimplementedError(
            f"{place}: `{self.tag}.{method}()` would run the function in another replica, which this platform does "
            f"{'not do yet' if method in _NEVER else 'for a local entrypoint only (modalnomad run)'}: "
            f"`{self.tag}.local(…)` runs it here"
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
