"""Blocking methods and their `.aio` twins: `f.get_web_url()` and `await f.get_web_url.aio()`."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


class Call(Generic[P, R]):
    """A function that can be called, or awaited as `.aio(…)`."""

    def __init__(self, function: Callable[P, R], aio: Callable[P, Coroutine[Any, Any, R]] | None = None) -> None:
        self._function = function
        self._aio = aio
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same, for `await`."""
        return self._function(*args, **kwargs) if self._aio is None else await self._aio(*args, **kwargs)


class Twin(Generic[S, P, R]):
    """Descriptor that gives a method of `S` its `.aio`; one that waits for something has an `async def` for it."""

    def __init__(self, function: Callable[Concatenate[S, P], R]) -> None:
        self._function = function
        self._aio: Callable[..., Coroutine[Any, Any, R]] | None = None
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def awaited(
        self, aio: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
        """Decorator of that `async def`."""
        self._aio = aio
        return aio

    def __call__(self, instance: S, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(instance, *args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Twin[S, P, R]: ...
    @overload
    def __get__(self, instance: S, owner: type) -> Call[P, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return Call(MethodType(self._function, instance), self._aio and MethodType(self._aio, instance))


class Stream(Generic[P, R]):
    """A function that gives an iterator, or an async one as `.aio(…)`."""

    def __init__(self, function: Callable[P, Iterator[R]], aio: Callable[P, AsyncIterator[R]]) -> None:
        self._function = function
        self._aio = aio
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._function(*args, **kwargs)

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        """The same, for `async for`."""
        return self._aio(*args, **kwargs)


class TwinStream(Generic[S, P, R]):
    """Descriptor like Twin, for methods that give an iterator."""

    def __init__(self, function: Callable[Concatenate[S, P], Iterator[R]]) -> None:
        self._function = function
        self._aio: Callable[..., AsyncIterator[R]] | None = None
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def iterated(
        self, aio: Callable[Concatenate[S, P], AsyncIterator[R]]
    ) -> Callable[Concatenate[S, P], AsyncIterator[R]]:
        """Decorator of the method that gives the async iterator."""
        self._aio = aio
        return aio

    def __call__(self, instance: S, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._function(instance, *args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> TwinStream[S, P, R]: ...
    @overload
    def __get__(self, instance: S, owner: type) -> Stream[P, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        assert self._aio is not None
        return Stream(MethodType(self._function, instance), MethodType(self._aio, instance))
