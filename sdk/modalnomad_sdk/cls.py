"""Cls: the handle that `@app.cls()` leaves in place of the class, and Obj, an instance made from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import where
from .calling import Target
from .declarations import FunctionDeclaration
from .exception import ExecutionError, InvalidError, NotFoundError, UnimplementedError
from .functions import Function
from .instances import bind, canonical_parameters, make_instance
from .partial import Handle
from .twin import Twin
from .unavailable import Missing

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from .process import Client
    from .secret import Secret


class Cls(Handle):
    """A class of an App, or (from `Cls.from_name`) a reference to one that is deployed. Call it to get an instance."""

    def __init__(self, declaration: FunctionDeclaration | None, tag: str, *, app: Any = None) -> None:
        self.tag = tag
        self._declaration = declaration
        self._app = app
        if declaration is not None:
            self.__name__ = declaration.target.__name__
            self.__doc__ = declaration.target.__doc__
            self.__module__ = declaration.target.__module__

    @classmethod
    def from_name(
        cls,
        app_name: str,
        name: str,
        *,
        version: int | None = None,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> Cls:
        """A reference to a class of a deployed App. Nothing is looked up before it is used."""
        return Cls(None, f"{app_name}/{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Obj:
        """An instance. Its arguments are checked when it is first used."""
        return Obj(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._declaration is None:
            raise AttributeError(f"'Cls' object has no attribute {name!r}")
        if name in _callable_names(self._declaration):
            return UnboundMethod(f"{self.tag}.{name}")
        # Constants and static methods of the class itself.
        try:
            return getattr(self._declaration.target, name)
        except AttributeError:
            raise AttributeError(f"the class `{self.tag}` has no attribute {name!r}") from None

    client = Missing("Cls.client")
    get_dashboard_url = Missing("Cls.get_dashboard_url")
    object_id = Missing("Cls.object_id")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise InvalidError(
            f"{where.caller()}: `{self.tag}` has @app.cls() on it and cannot be a base class: put what is shared into "
            "a plain class, and derive both from that"
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
    ) -> Cls:
        """A variant with other options, called with `.remote`. Not available."""
        self._no_variants("with_options")

    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Cls:
        """A variant with another concurrency. Not available."""
        self._no_variants("with_concurrency")

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Cls:
        """A variant with batching. Not available."""
        self._no_variants("with_batching")

    def _no_variants(self, method: str) -> NoReturn:
        raise UnimplementedError(
            f"{where.caller()}: `{self.tag}.{method}(…)` makes a variant for .remote() calls, which this platform does "
            "not have yet: write the options into @app.cls(…)"
        )

    @Twin
    def hydrate(self, client: Client | None = None) -> Cls:
        """Nothing to do for a class of this program."""
        if self._declaration is None:
            raise NotFoundError(f"{where.caller()}: references to deployed classes ({self.tag}) are not available yet")
        return self

    def __repr__(self) -> str:
        return f"Cls({self.tag})"


class UnboundMethod:
    """`Server.files`, without an instance."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> NoReturn:
        owner = self._name.split(".", maxsplit=1)[0]
        raise AttributeError(
            f"`{self._name}.{name}`: `{owner}` is a class; did you forget to instantiate it? Write "
            f"`{owner}().{self._name.split('.')[1]}.{name}`"
        )

    def __repr__(self) -> str:
        return f"UnboundMethod({self._name})"


def _callable_names(declaration: FunctionDeclaration) -> set[str]:
    return {*declaration.methods, *(e.method_name for e in declaration.endpoints if e.method_name is not None)}


class Obj:
    """An instance of a Cls: its methods have `.local()`, `.remote()` and `.get_web_url()`; other attributes are the
    real ones.

    The user's own instance is made at the first use, and its `enter` methods run then.
    """

    def __init__(self, cls: Cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._cls = cls
        self._args = args
        self._kwargs = dict(kwargs)
        self._instance: Any = None
        self._entered = False

    def _user_instance(self, *, enter: bool = True) -> Any:
        declaration = self._cls._declaration
        if declaration is None:
            raise ExecutionError(
                f"{where.caller()}: `{self._cls.tag}` is a reference to a deployed class; its code is not here"
            )
        if self._instance is None:
            self._check_by_name()
            self._instance = make_instance(declaration, self._kwargs)
        if enter and not self._entered:
            self._entered = True
            for name in declaration.enters:
                result = bind(self._instance, name)()
                if inspect.iscoroutine(result):
                    _run(result)
        return self._instance

    def _check_by_name(self) -> None:
        if self._args:
            raise InvalidError(f"{where.caller()}: `{self._cls.tag}(…)` takes its parameters by name, not by position")

    def __getattr__(self, name: str) -> Any:
        declaration = self._cls._declaration
        if name.startswith("__") or declaration is None:
            raise AttributeError(f"{self._cls.tag!r} object has no attribute {name!r}")
        if name not in _callable_names(declaration):
            return getattr(self._user_instance(), name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return bind(self._user_instance(), name)(*args, **kwargs)

        endpoint = next((e.name for e in declaration.endpoints if e.method_name == name), None)
        tag = f"{self._cls.tag}.{name}"
        target = Target(declaration.tag, tag, name, self._parameters)
        return Function(declaration, tag, app=self._cls._app, call=call, endpoint=endpoint, target=target)

    def _parameters(self) -> str:
        """Canonical JSON of all parameters, as the key of their pool has it. Raises InvalidError."""
        declaration = self._cls._declaration
        assert declaration is not None
        self._check_by_name()
        return canonical_parameters(declaration, self._kwargs)

    def __repr__(self) -> str:
        return f"{self._cls.tag}(…)"


def _run(coroutine: Any) -> None:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    coroutine.close()
    raise ExecutionError(
        "an async `enter` method cannot run inside a running event loop when an instance is made for .local()"
    )
