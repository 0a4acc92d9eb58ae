"""A function (or class) between its decorators: what `@modal.method()`, `@modal.asgi_app()` … leave behind.

Each decorator adds one setting; `App.function` and `App.cls` read them all. Combinations that mean nothing are refused
when the second of them is applied.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from typing import ParamSpec  # isort: skip

from . import where
from .declarations import EndpointKind
from .exception import InvalidError

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Handle:
    """Base of what `App.function` and `App.cls` return, so that a decorator above them is recognised."""

    tag: str


@dataclass(frozen=True)
class Web:
    """Arguments of a web decorator."""

    kind: EndpointKind
    where: str
    method: str = "GET"
    label: str | None = None
    custom_domains: tuple[str, ...] = ()
    docs: bool = False
    requires_proxy_auth: bool = False
    port: int | None = None
    port_timeout: float | None = None


@dataclass(frozen=True)
class Method:
    """`@modal.method()`."""

    where: str
    is_generator: bool | None = None


@dataclass(frozen=True)
class Enter:
    """`@modal.enter()`."""

    where: str
    snap: bool


@dataclass(frozen=True)
class Exit:
    """`@modal.exit()`."""

    where: str


@dataclass(frozen=True)
class Batched:
    """`@modal.batched(…)`."""

    where: str
    max_batch_size: int
    wait_ms: int


@dataclass(frozen=True)
class Concurrent:
    """`@modal.concurrent(…)`; `max_inputs` None: forgotten, found out by the App's decorator."""

    where: str
    max_inputs: int | None
    target_inputs: int | None


@dataclass(frozen=True)
class Clustered:
    """`@modal.clustered(…)`."""

    where: str
    size: int
    rdma: bool


@dataclass(frozen=True)
class Sessioned:
    """`@modal.sessioned()`."""

    where: str


@dataclass(frozen=True)
class Settings:
    """Everything the decorators said."""

    web: Web | None = None
    method: Method | None = None
    enter: Enter | None = None
    exit: Exit | None = None
    batched: Batched | None = None
    concurrent: Concurrent | None = None
    clustered: Clustered | None = None
    sessioned: Sessioned | None = None

    def present(self) -> list[str]:
        """Names of the settings made."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


class PartialFunction(Generic[P, R]):
    """A decorated function that is not registered with an App yet, or a decorated method of a class."""

    def __init__(self, raw: Callable[P, R], settings: Settings) -> None:
        self.raw = raw
        self.settings = settings
        self.__name__ = getattr(raw, "__name__", "?")
        self.__qualname__ = getattr(raw, "__qualname__", self.__name__)
        self.__doc__ = raw.__doc__
        self.__module__ = getattr(raw, "__module__", "")
        self.__wrapped__ = raw

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound = self.raw.__get__(instance, owner)
        if self.settings.enter or self.settings.exit:
            return bound
        return BoundMethod(self, bound, type(instance).__name__)

    def __repr__(self) -> str:
        return f"PartialFunction({self.__name__})"


class BoundMethod(Generic[P, R]):
    """A `modal.method` or web method of a plain instance, as `self.other` is inside the class.

    Not callable, as in Modal: `.local()` runs it here.
    """

    def __init__(self, partial: PartialFunction[..., R], bound: Callable[P, R], owner: str) -> None:
        self._bound = bound
        self._name = f"{owner}.{partial.__name__}"

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the method here."""
        return self._bound(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in {"remote", "remote_gen", "spawn", "map", "starmap", "for_each", "spawn_map"}:
            raise InvalidError(
                f"{where.caller()}: `{self._name}.{name}` would start another replica, which this platform does not do "
                f"from inside one; `{self._name}.local(…)` runs the method here"
            )
        raise AttributeError(f"Method({self._name}) has no attribute {name}")

    def __repr__(self) -> str:
        return f"Method({self._name})"


# What each decorator is called in messages.
SPELLING = {
    "method": "@modal.method()",
    "enter": "@modal.enter()",
    "exit": "@modal.exit()",
    "batched": "@modal.batched(…)",
    "concurrent": "@modal.concurrent(…)",
    "clustered": "@modal.clustered(…)",
    "sessioned": "@modal.sessioned()",
}
_ON_CLASSES = {"concurrent", "clustered", "sessioned"}


def spelling(setting: str, settings: Settings) -> str:
    """`@modal.asgi_app()` for the setting `web` with that kind."""
    return f"@modal.{settings.web.kind}()" if setting == "web" and settings.web is not None else SPELLING[setting]


def add(setting: str, value: Any, target: Any) -> PartialFunction[Any, Any]:
    """`target` with one more setting.

    Raises:
        InvalidError: not something this can be applied to, or it cannot be combined with what is there.
    """
    made = replace(Settings(), **{setting: value})
    decorator = spelling(setting, made)
    place = value.where
    if isinstance(target, Handle):
        raise InvalidError(
            f"{place}: {decorator} stands above @app.function() or @app.cls() of `{target.tag}`: swap the order of the "
            f"decorators, {decorator} goes below"
        )
    if isinstance(target, type) and setting not in _ON_CLASSES:
        raise InvalidError(
            f"{place}: {decorator} cannot be applied to the class `{target.__name__}`; try applying to a method instead"
        )
    if isinstance(target, PartialFunction):
        _check_combination(target, setting, made, place)
        return PartialFunction(target.raw, replace(target.settings, **{setting: value}))
    if isinstance(target, (staticmethod, classmethod)):
        raise InvalidError(
            f"{place}: {decorator} is applied to a {type(target).__name__}; write it on an ordinary method with `self`"
        )
    if not callable(target):
        raise InvalidError(f"{place}: {decorator} is applied to {target!r}, which is not a function")
    return PartialFunction(target, made)


def _check_combination(target: PartialFunction[Any, Any], setting: str, made: Settings, place: str) -> None:
    there = target.settings
    new = spelling(setting, made)
    name = target.__name__
    if isinstance(target.raw, type) and setting not in _ON_CLASSES:
        raise InvalidError(f"{place}: {new} cannot be applied to the class `{name}`; try applying to a method instead")
    if setting in there.present():
        old = spelling(setting, there)
        what = "web decorator" if setting == "web" else old
        raise InvalidError(f"{place}: Cannot set {what} twice on `{name}` ({old} and {new}): keep one of them")
    together = {*there.present(), setting}
    lifecycle = together & {"enter", "exit"}
    callables = together & {"method", "web", "batched", "concurrent"}
    if lifecycle and callables:
        other = spelling(min(callables), replace(there, **{setting: getattr(made, setting)}))
        raise InvalidError(
            f"{place}: {other} cannot be combined with lifecycle decorators (@modal.enter, @modal.exit) on `{name}`: "
            "use two methods"
        )
    if "web" in together and together & {"method", "batched"}:
        other = SPELLING["method" if "method" in together else "batched"]
        web = spelling("web", made if setting == "web" else there)
        raise InvalidError(f"{place}: {web} cannot be combined with {other} on `{name}`: keep one of them")
    if {"method", "batched"} <= together:
        raise InvalidError(
            f"{place}: @modal.method() and @modal.batched(…) cannot be combined on `{name}`: keep one of them"
        )


def is_method(function: Callable[..., Any]) -> bool:
    """Was it written inside a class?"""
    outer, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    return bool(outer) and not outer.endswith("<locals>")


def own_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Parameters without the `self` of a method."""
    found = list(inspect.signature(function).parameters.values())
    if found and (is_method(function) or found[0].name == "self"):
        return found[1:]
    return found


def is_generator(function: Callable[..., Any]) -> bool:
    """Does a call of it yield, sync or async?"""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
