"""Which unavailable objects a function's code refers to by a global name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from .partial import PartialFunction
from .unavailable import Missing, Unavailable


def unavailable_in(target: Callable[..., Any]) -> list[str]:
    """`volume (Volume 'models')` for each module-level object that the function, or a method of the class, names."""
    found: dict[str, str] = {}
    for function in _functions(target):
        for name in names(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, Unavailable):
                found[name] = f"`{name}`, a modal.{type(value).__name__}"
            elif isinstance(value, Missing):
                found[name] = f"`{name}`, {value!r}"
    return list(found.values())


def _functions(target: Any) -> Iterator[FunctionType]:
    if isinstance(target, type):
        for base in target.__mro__[:-1]:
            for value in vars(base).values():
                yield from _functions(value.raw if isinstance(value, PartialFunction) else value)
        return
    while hasattr(target, "__wrapped__"):
        target = target.__wrapped__
    if isinstance(target, FunctionType):
        yield target


def names(code: CodeType) -> Iterator[str]:
    """Global names (and attributes) that the code and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)
