"""Instances of the user's classes, as a replica needs them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from .declarations import FunctionDeclaration, ParameterDeclaration
from .exception import InvalidError
from .partial import PartialFunction

_TYPES: Mapping[str, type] = {"str": str, "int": int, "bool": bool, "bytes": bytes}


def _check(tag: str, parameter: ParameterDeclaration, value: object) -> None:
    # bool is an int for isinstance, but not for anybody who wrote `x: int`.
    if type(value) is not _TYPES[parameter.type]:
        raise InvalidError(
            f"parameter `{parameter.name}` of `{tag}` is a {parameter.type}, but a {type(value).__name__} was given"
        )


def bind_parameters(declaration: FunctionDeclaration, given: Mapping[str, object]) -> dict[str, object]:
    """Values of all parameters, defaults filled in, in the order of the class.

    Raises:
        InvalidError: unknown, missing or mistyped ones.
    """
    known = {parameter.name: parameter for parameter in declaration.parameters}
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        has = ", ".join(known) or "none"
        raise InvalidError(f"`{declaration.tag}` has no parameter {', '.join(unknown)} (its parameters: {has})")
    values: dict[str, object] = {}
    missing = []
    for parameter in declaration.parameters:
        if parameter.name in given:
            _check(declaration.tag, parameter, given[parameter.name])
            values[parameter.name] = given[parameter.name]
        elif parameter.has_default:
            values[parameter.name] = parameter.default
        else:
            missing.append(parameter.name)
    if missing:
        raise InvalidError(f"`{declaration.tag}` needs the parameter {', '.join(missing)}, which was not given")
    return values


PARAMETERS_LIMIT = 16 * 1024
"""Bytes of all values together, as canonical JSON."""


def canonical_parameters(declaration: FunctionDeclaration, given: Mapping[str, object]) -> str:
    """Values of all parameters as the platform names their pool: JSON with sorted keys; empty: the class has none.

    Raises:
        InvalidError: as bind_parameters, or they are too large.
    """
    values = bind_parameters(declaration, given)
    if not values:
        return ""
    plain = {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in values.items()
    }
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    if len(text) > PARAMETERS_LIMIT:
        raise InvalidError(
            f"the parameters of `{declaration.tag}` take {len(text)} bytes together; at most {PARAMETERS_LIMIT} are "
            "allowed"
        )
    return text


def make_instance(declaration: FunctionDeclaration, parameters: Mapping[str, object]) -> object:
    """An instance of the user's class with its parameters set; `enter` methods have not run.

    Raises:
        InvalidError: the parameters do not fit the class.
    """
    cls: Any = declaration.target
    values = bind_parameters(declaration, parameters)
    instance: object = cls.__new__(cls)
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance


def bind(instance: object, name: str) -> Callable[..., Any]:
    """The user's own function behind attribute `name`, bound to `instance`: a plain method.

    Use this instead of `getattr`, which for a decorated method gives a handle with `.local()` and `.remote()`.
    """
    for base in type(instance).__mro__:
        if name in vars(base):
            found = vars(base)[name]
            raw = found.raw if isinstance(found, PartialFunction) else found
            bound: Callable[..., Any] = raw.__get__(instance, type(instance))
            return bound
    raise AttributeError(f"{type(instance).__name__} has no attribute {name}")
