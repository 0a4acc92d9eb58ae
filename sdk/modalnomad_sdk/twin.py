"""Blocking methods and their `.aio` twins: `f.get_web_url()` and `await f.get_web_url.aio()`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


class Call(Generic[P, R]):
    """A function that can be called, or awaited as `.aio(…)`."""

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same, for `await`."""
        return self._function(*args, **kwargs)


class Twin(Generic[S, P, R]):
    """Descriptor that gives a method of `S` its `.aio`."""

    def __init__(self, function: Callable[Concatenate[S, P], R]) -> None:
        self._function = function
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __call__(self, instance: S, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(instance, *args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Twin[S, P, R]: ...
    @overload
    def __get__(self, instance: S, owner: type) -> Call[P, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else Call(MethodType(self._function, instance))
