"""What `Image.run_function` makes of a function: how to find it again, its arguments, and a digest of its code."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import PurePath
from types import FunctionType
from typing import Any

from .exception import InvalidError
from .image_base import Step
from .partial import PartialFunction
from .uses import names


def call_data(step: Step) -> dict[str, Any]:
    """`module`, `function` (qualified name), `args`, `kwargs`, `code` (SHA-256).

    Raises:
        InvalidError: not a plain function of a module's top level, or arguments that are not plain values.
    """
    function = step.function.raw if isinstance(step.function, PartialFunction) else step.function
    if not isinstance(function, FunctionType):
        raise InvalidError(
            f"{step.where}: Image.run_function needs a function written with `def`, not {function!r}: wrap it in one"
        )
    if "<" in function.__qualname__:
        raise InvalidError(
            f"{step.where}: Image.run_function: `{function.__qualname__}` is imported by its name while the image is "
            "built: move it to the top level of its module"
        )
    return {
        "module": function.__module__,
        "function": function.__qualname__,
        "args": _plain(list(step.arguments.get("args", ())), "args", step.where),
        "kwargs": _plain(dict(step.arguments.get("kwargs", {})), "kwargs", step.where),
        "code": code_digest(function),
    }


def _plain(value: Any, name: str, place: str) -> Any:
    rule = "only texts, numbers, True, False, None, and lists and dicts of them can be kept"
    try:
        copied = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"{place}: Image.run_function({name}=…): {rule}: {error}") from None
    if copied != value:
        raise InvalidError(f"{place}: Image.run_function({name}={value!r}): {rule} (no tuples, keys are texts)")
    return copied


def code_digest(function: FunctionType) -> str:
    """Changes when the function's source does, or that of a function of its module which it names (and so on), or a
    module-level text, number, path, or list or dict of them that one of these names. Values are only hashed."""
    parts: dict[str, Any] = {}
    pending = [function]
    while pending:
        one = pending.pop()
        key = f"{one.__module__}:{one.__qualname__}"
        if key in parts:
            continue
        parts[key] = _source(one)
        known = one.__globals__
        for name in set(names(one.__code__)) & known.keys():
            value = known[name]
            if isinstance(value, FunctionType):
                if value.__module__ == function.__module__:
                    pending.append(value)
            elif not name.startswith("__") and (text := _as_text(value)) is not None:
                parts[f"{one.__module__}.{name}"] = text
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _source(function: FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return function.__code__.co_code.hex()


def _as_text(value: Any) -> str | None:
    try:
        return str(value) if isinstance(value, PurePath) else json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None
