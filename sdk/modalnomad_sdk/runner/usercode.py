"""The user's program in this replica: loaded, entered, built into apps and servers, and shut down again."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from modalnomad_sdk import loading, state
from modalnomad_sdk.contract import Exit
from modalnomad_sdk.declarations import EndpointDeclaration, FunctionDeclaration
from modalnomad_sdk.instances import bind, make_instance

from .config import Config
from .endpoints import CannotServe, build_app
from .failures import Failed, report
from .gate import Mounted
from .lifespan import Lifespan, LifespanFailed
from .ports import PortNeverOpened, wait_for_port

PORT_TIMEOUT = 5.0
"""Seconds, where web_server(startup_timeout=…) says nothing."""


def prepare_environment(config: Config) -> None:
    """What user code finds: the names Modal gives, its working directory, its name in sys.argv."""
    os.environ["MODAL_IS_REMOTE"] = "1"
    names = {
        "MODAL_TASK_ID": f"ta-{config.pool}.{config.replica}",
        "MODAL_ENVIRONMENT": config.environment,
        "MODAL_IMAGE_ID": f"im-{(config.image or 'none').rpartition(':')[2][:24]}",
        "MODAL_REGION": "local",
        "MODAL_CLOUD_PROVIDER": "local",
    }
    for name, value in names.items():
        os.environ.setdefault(name, value)  # the engine may know better
    for name in ("MODALNOMAD_LISTEN", "MODALNOMAD_LIFELINE", "MODALNOMAD_CGROUPS"):
        os.environ.pop(name, None)
    sys.argv = [config.source.partition(":")[2]]
    try:
        os.chdir(config.workdir or config.bundle)
    except OSError as error:
        raise Failed(Exit.BAD_CONFIGURATION, f"the working directory is not there: {error}") from error


def load(config: Config) -> FunctionDeclaration:
    """Import the user's module and find what this replica runs. Raises Failed."""
    state.enter_replica(config.image, config.web_urls or {})
    try:
        module = loading.load_module(config.source, Path(config.bundle))
        return loading.find_declaration(module, config.function, config.app)
    except loading.ModuleBroken as error:
        raise Failed(Exit.USER_CODE_FAILED, str(error), error.__cause__) from error
    except (loading.ModuleMissing, loading.LookupError_) as error:
        raise Failed(Exit.FUNCTION_NOT_FOUND, str(error)) from error


class UserCode:
    """One Function, or one instance of a Cls. All of it runs in the main thread: sync code without a running loop,
    async code on the one loop there is."""

    def __init__(self, declaration: FunctionDeclaration, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.declaration = declaration
        self.config = config
        self.loop = loop
        self.mounted: dict[str, Mounted] = {}
        """Endpoints that are apps, by name."""
        self.servers: dict[str, tuple[str, int]] = {}
        """Where each `web_server` accepts, by endpoint name."""
        self.callables: dict[str, Callable[..., Any]] = {}
        """What CALL_PATH runs, by method; `""`: the Function itself."""
        self._functions: dict[str, Callable[..., Any]] = {}
        self._exits: list[Callable[[], Any]] = []

    def enter(self) -> None:
        """Make the instance and run its `enter` methods. Raises Failed."""
        declaration = self.declaration
        if not declaration.is_class:
            self._functions = {endpoint.name: declaration.target for endpoint in declaration.endpoints}
            if not declaration.endpoints:
                self.callables = {"": _one_by_one(declaration.target) if declaration.batched else declaration.target}
            return
        try:
            instance = make_instance(declaration, self.config.parameters or {})
        except Exception as error:
            raise Failed(Exit.USER_CODE_FAILED, "", error) from error
        self._functions = {e.name: bind(instance, e.method_name or "") for e in declaration.endpoints}
        self.callables = {name: bind(instance, name) for name in declaration.methods}
        for name in declaration.enters:
            self._call(bind(instance, name), f"`{declaration.tag}.{name}` (enter) raised")
        self._exits = [bind(instance, name) for name in declaration.exits]

    def build(self) -> None:
        """Call the app-building functions. Raises Failed."""
        for endpoint in self.declaration.endpoints:
            function = self._functions[endpoint.name]
            made = None
            if endpoint.kind != "fastapi_endpoint":
                made = self._call(function, f"`{endpoint.name}` ({endpoint.kind}) raised")
            if endpoint.kind == "web_server":
                continue
            try:
                app = build_app(endpoint, function, made, self.config.max_inputs)
            except CannotServe as error:
                raise Failed(Exit.USER_CODE_FAILED, str(error)) from error
            except Exception as error:
                raise Failed(Exit.USER_CODE_FAILED, f"`{endpoint.name}` cannot be served", error) from error
            self.mounted[endpoint.name] = Mounted(app, Lifespan(app))

    def start_up(self) -> None:
        """Ports answer and lifespans have started. Raises Failed."""
        for endpoint in self.declaration.endpoints:
            if endpoint.kind == "web_server":
                self.servers[endpoint.name] = self._wait_for(endpoint)
        for name, mounted in self.mounted.items():
            try:
                self.loop.run_until_complete(mounted.lifespan.start())
            except LifespanFailed as error:
                raise Failed(Exit.USER_CODE_FAILED, f"`{name}`: {error}", error.__cause__) from error

    def _wait_for(self, endpoint: EndpointDeclaration) -> tuple[str, int]:
        limit = PORT_TIMEOUT if endpoint.port_timeout is None else endpoint.port_timeout
        try:
            return self.loop.run_until_complete(wait_for_port(endpoint, limit))
        except PortNeverOpened as error:
            raise Failed(Exit.PORT_NEVER_OPENED, str(error)) from error

    def shut_down(self) -> bool:
        """Lifespan shutdown of each, then `exit` methods: all run, whatever one of them raises. False: one did."""
        good = True
        for name, mounted in self.mounted.items():
            try:
                self.loop.run_until_complete(mounted.lifespan.stop())
            except LifespanFailed as error:
                report(Failed(Exit.EXIT_FAILED, f"`{name}`: {error}", error.__cause__))
                good = False
        for function in self._exits:
            try:
                self._call(function, f"`{function.__qualname__}` (exit) raised")
            except Failed as failed:
                report(failed)
                good = False
        return good

    def _call(self, function: Callable[[], Any], what: str) -> Any:
        try:
            result = function()
            return self.loop.run_until_complete(_wait(result)) if inspect.isawaitable(result) else result
        except BaseException as error:
            raise Failed(Exit.USER_CODE_FAILED, what, error) from error


def _one_by_one(batched: Callable[..., Any]) -> Callable[..., Any]:
    """A `@modal.batched` function gets lists; here each of them has one item."""

    def lists(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return batched(*([value] for value in args), **{name: [value] for name, value in kwargs.items()})

    if inspect.iscoroutinefunction(batched):

        async def run_async(*args: Any, **kwargs: Any) -> Any:
            return _only(batched, await lists(args, kwargs))

        return run_async

    def run(*args: Any, **kwargs: Any) -> Any:
        return _only(batched, lists(args, kwargs))

    return run


def _only(batched: Callable[..., Any], results: Any) -> Any:
    if not isinstance(results, list) or len(results) != 1:
        raise TypeError(f"`{batched.__name__}` is batched, so it must return a list as long as the one it gets")
    return results[0]


async def _wait(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
