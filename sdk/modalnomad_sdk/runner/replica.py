"""A replica's life in its innermost process: load, enter, build, start up, serve, drain, shut down, exit."""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import gc
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import state
from ..contract import Exit
from ..declarations import EndpointDeclaration, FunctionDeclaration
from . import logs
from .config import Config
from .door_answers import Porter
from .doors import Doors
from .endpoints import CannotServe, build_app
from .gate import Gate, Mounted
from .lifespan import Lifespan, LifespanFailed
from .processes import DRAINING, READY, SIGNAL_TRACEBACK, TERMINATE, say
from .sockets import keep_from_children, refuse_newcomers

_PACKAGE = str(Path(__file__).parent.parent)


class Failed(Exception):
    """The replica ends with this code. The message, if any, is for standard error; `cause` is the user's own error."""

    def __init__(self, code: Exit, message: str = "", cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.cause = cause


class Replica:
    """Owns the event loop and everything on it."""

    def __init__(self, config: Config, listener: socket.socket, link: socket.socket) -> None:
        self.config = config
        self.listener = listener
        self.link = link
        self.doors = Doors(config.max_inputs)
        self.porter = Porter(config.ticket_sha256, config.name, self.doors)
        self.mounted: dict[str, Mounted] = {}
        self.functions: dict[str, Callable[..., Any]] = {}
        self.exits: list[Callable[[], Any]] = []
        self.code = Exit.OK

    def run(self) -> int:
        """The whole life; the exit code."""
        keep_from_children(self.listener.fileno(), self.link.fileno())
        logs.install(self.config.log_tags)
        faulthandler.register(SIGNAL_TRACEBACK, file=2, all_threads=True)
        thresholds = gc.get_threshold()
        # Imports make no garbage worth looking for.
        gc.set_threshold(100_000, 50, 100)
        try:
            declaration = self._load()
            self.loop = _new_loop()
            asyncio.set_event_loop(self.loop)
            self._enter(declaration)
            self._build(declaration)
            gc.freeze()
            gc.set_threshold(*thresholds)
            self.loop.run_until_complete(self._serve())
            self._leave()
        except Failed as failed:
            _report(failed)
            return failed.code
        atexit._run_exitfuncs()
        return self.code

    def _load(self) -> FunctionDeclaration:
        from .. import loading

        config = self.config
        state.enter_replica(config.image, config.web_urls or {})
        _prepare_environment(config)
        root = Path(config.bundle)
        try:
            os.chdir(config.workdir or root)
        except OSError as error:
            raise Failed(Exit.BAD_CONFIGURATION, f"the working directory is not there: {error}") from error
        try:
            module = loading.load_module(config.source, root)
            return loading.find_declaration(module, config.function, config.app)
        except loading.ModuleBroken as error:
            raise Failed(Exit.USER_CODE_FAILED, str(error), error.__cause__) from error
        except (loading.ModuleMissing, loading.LookupError_) as error:
            raise Failed(Exit.FUNCTION_NOT_FOUND, str(error)) from error

    def _enter(self, declaration: FunctionDeclaration) -> None:
        from ..instances import bind, make_instance

        if not declaration.is_class:
            self.functions = {endpoint.name: declaration.target for endpoint in declaration.endpoints}
            return
        try:
            instance = make_instance(declaration, self.config.parameters or {})
        except Exception as error:
            raise Failed(Exit.USER_CODE_FAILED, "", error) from error
        self.exits = [bind(instance, name) for name in declaration.exits]
        self.functions = {e.name: bind(instance, e.method_name or "") for e in declaration.endpoints}
        for name in declaration.enters:
            self._call(bind(instance, name), f"`{declaration.tag}.{name}` (enter) raised")

    def _build(self, declaration: FunctionDeclaration) -> None:
        for endpoint in declaration.endpoints:
            self._mount(endpoint)
        for name, mounted in self.mounted.items():
            try:
                self.loop.run_until_complete(mounted.lifespan.start())
            except LifespanFailed as error:
                raise Failed(Exit.USER_CODE_FAILED, f"`{name}`: {error}", error.__cause__) from error

    def _mount(self, endpoint: EndpointDeclaration) -> None:
        function = self.functions[endpoint.name]
        made = None
        if endpoint.kind != "fastapi_endpoint":
            made = self._call(function, f"`{endpoint.name}` ({endpoint.kind}) raised")
        try:
            app = build_app(endpoint, function, made, self.config.max_inputs)
        except CannotServe as error:
            raise Failed(Exit.USER_CODE_FAILED, str(error)) from error
        except Exception as error:
            raise Failed(Exit.USER_CODE_FAILED, f"`{endpoint.name}` cannot be served", error) from error
        self.mounted[endpoint.name] = Mounted(app, Lifespan(app))

    def _call(self, function: Callable[[], Any], what: str) -> Any:
        """Call user code in the main thread: sync without a running loop, async on the loop."""
        try:
            result = function()
            return self.loop.run_until_complete(_wait(result)) if inspect.isawaitable(result) else result
        except BaseException as error:
            raise Failed(Exit.USER_CODE_FAILED, what, error) from error

    async def _serve(self) -> None:
        from .serve import Server

        self._loop_settings()
        gate = Gate(self.mounted, self.doors, self.porter, self.config.timeout)
        server = Server(gate)
        changed = asyncio.Event()
        self.doors.on_change = changed.set
        self.loop.add_reader(self.link, self._on_link)
        self.doors.open()
        await server.listen(self.listener)
        self.link.send(READY)
        while not self.doors.draining:
            await changed.wait()
            changed.clear()
        self.link.send(DRAINING)
        deadline = self.loop.time() + self.config.grace_period - self._reserve()
        while self.doors.running and self.loop.time() < deadline:
            changed.clear()
            try:
                await asyncio.wait_for(changed.wait(), deadline - self.loop.time())
            except asyncio.TimeoutError:
                break
        if self.doors.running:
            say(f"{self.doors.running} requests were still running at the end of the grace period")
            self.code = Exit.GRACE_EXPIRED
        await asyncio.sleep(0)  # what already waits in the backlog is refused, not cut off
        refuse_newcomers(self.listener)
        server.stop_listening()
        await server.close(within=self._reserve() / 2)

    def _reserve(self) -> float:
        """Part of the grace period that is kept for shutting down."""
        return min(2.0, self.config.grace_period / 5)

    def _on_link(self) -> None:
        if TERMINATE in self.link.recv(64):
            self.doors.shut()

    def _loop_settings(self) -> None:
        anyio = sys.modules.get("anyio")
        if anyio is not None:  # sync handlers of Starlette run on its threads: one for every place
            limiter = anyio.to_thread.current_default_thread_limiter()
            limiter.total_tokens = max(limiter.total_tokens, self.config.max_inputs)

    def _leave(self) -> None:
        """Lifespan shutdown of each, then `exit` methods; all run, whatever one of them raises."""
        for name, mounted in self.mounted.items():
            try:
                self.loop.run_until_complete(mounted.lifespan.stop())
            except LifespanFailed as error:
                _report(Failed(Exit.EXIT_FAILED, f"`{name}`: {error}", error.__cause__))
                self.code = self.code or Exit.EXIT_FAILED
        for function in self.exits:
            try:
                self._call(function, f"`{getattr(function, '__qualname__', function)}` (exit) raised")
            except Failed as failed:
                _report(failed)
                self.code = self.code or Exit.EXIT_FAILED


async def _wait(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


def _prepare_environment(config: Config) -> None:
    """What user code finds in os.environ (reference: Modal's names where programs read them)."""
    os.environ["MODAL_IS_REMOTE"] = "1"
    os.environ["MODAL_TASK_ID"] = f"ta-{config.pool}.{config.replica}"
    os.environ["MODAL_ENVIRONMENT"] = config.environment
    os.environ["MODAL_IMAGE_ID"] = f"im-{(config.image or 'none').rpartition(':')[2][:24]}"
    for name in ("MODALNOMAD_LISTEN", "MODALNOMAD_LIFELINE"):
        os.environ.pop(name, None)
    sys.argv = [config.source.partition(":")[2]]


def _report(failed: Failed) -> None:
    """The user's own traceback first, without our frames above it; then what it means."""
    if failed.cause is not None:
        trace = _user_part(failed.cause.__traceback__)
        traceback.print_exception(type(failed.cause), failed.cause, trace)
    if str(failed):
        say(str(failed))


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    here = trace
    while here is not None:
        name = here.tb_frame.f_code.co_filename
        if not name.startswith((_PACKAGE, "<frozen importlib")) and "/importlib/" not in name:
            return here
        here = here.tb_next
    return trace
