"""Class parameters: annotated attributes with `modal.parameter()`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import where
from .declarations import ParameterDeclaration, ParameterType
from .exception import InvalidError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform as dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """For type checkers: a class with parameters has a constructor that takes them by name."""
        return lambda decorated: decorated


_NAMES: dict[Any, ParameterType] = {str: "str", int: "int", bool: "bool", bytes: "bytes"}
_BY_TEXT: dict[str, ParameterType] = {"str": "str", "int": "int", "bool": "bool", "bytes": "bytes"}


class _NoDefault:
    def __repr__(self) -> str:
        return "…"


NO_DEFAULT = _NoDefault()


class _Parameter:
    """What `modal.parameter()` leaves in the class body."""

    def __init__(self, default: Any, init: bool) -> None:
        self.default = default
        self.init = init
        self.where = where.caller()

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self.default is NO_DEFAULT:
            raise AttributeError("this modal.parameter() has no value yet")
        return self.default


def parameter(*, default: Any = NO_DEFAULT, init: bool = True) -> Any:
    """A value that an instance of an `@app.cls` class is made with. Each set of values has replicas of its own.

    The attribute needs an annotation: str, int, bool or bytes. In web use the value comes from the query string.

    Args:
        default: used when no value is given.
        init: False makes it an ordinary attribute.
    """
    return _Parameter(default, init)


def _annotations(cls: type) -> dict[str, Any]:
    found = vars(cls).get("__annotations__")
    if found is None and sys.version_info >= (3, 14):
        import annotationlib

        found = annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return dict(found or {})


def _all(cls: type) -> Iterator[tuple[type, str, _Parameter]]:
    """(class it stands in, name, parameter): base classes first, a redefinition in its first place."""
    seen: dict[str, tuple[type, _Parameter]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, _Parameter):
                seen[name] = (base, value)
            elif name in seen:
                del seen[name]
    for name, (base, value) in seen.items():
        yield base, name, value


def parameters_of(cls: type) -> tuple[ParameterDeclaration, ...]:
    """Parameters of a class, those of its base classes first.

    Raises:
        InvalidError: no annotation, a type that is not supported, or a default of another type.
    """
    found = []
    for base, name, value in _all(cls):
        if not value.init:
            continue
        annotations = _annotations(base)
        if name not in annotations:
            raise InvalidError(
                f"{value.where}: the parameter `{name}` of `{cls.__name__}` has no annotation; write `{name}: str = "
                "modal.parameter()`, or int, bool, bytes"
            )
        annotation = annotations[name]
        # `from __future__ import annotations` leaves texts.
        kind = _BY_TEXT.get(annotation.strip()) if isinstance(annotation, str) else _NAMES.get(annotation)
        if kind is None:
            shown = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
            raise InvalidError(
                f"{value.where}: the parameter `{name}` of `{cls.__name__}` is a {shown}; supported are str, int, bool "
                "and bytes"
            )
        has_default = value.default is not NO_DEFAULT
        if has_default and type(value.default).__name__ != kind:
            raise InvalidError(
                f"{value.where}: the default of the parameter `{name}: {kind}` of `{cls.__name__}` is "
                f"{value.default!r}, a {type(value.default).__name__}"
            )
        found.append(ParameterDeclaration(name, kind, has_default, value.default if has_default else None))
    return tuple(found)
