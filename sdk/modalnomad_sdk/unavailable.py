"""Objects of the API that this platform does not have yet.

They can be declared, so that programs import; a Function that uses one is refused at deploy, and calling one raises
with the limit's name.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from . import where
from .exception import UnimplementedError


class Missing:
    """Stands for something unavailable; any use of it raises UnimplementedError."""

    def __init__(self, name: str, instead: str = "") -> None:
        self._name = name
        self._instead = instead

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        place = where.caller()
        instead = f". {self._instead}" if self._instead else ""
        raise UnimplementedError(f"{place}: `modal.{self._name}` is not available on this platform{instead}")

    __call__ = _refuse
    __enter__ = _refuse
    __aenter__ = _refuse
    __iter__ = _refuse
    __aiter__ = _refuse
    __await__ = _refuse
    __len__ = _refuse
    __getitem__ = _refuse
    __setitem__ = _refuse
    __contains__ = _refuse

    def __exit__(self, *_: object) -> None:
        """Never reached."""

    async def __aexit__(self, *_: object) -> None:
        """Never reached."""

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self if name == "aio" else Missing(f"{self._name}.{name}", self._instead)

    def __repr__(self) -> str:
        return f"<modal.{self._name}: not available on this platform>"


class _Meta(type):
    """Lets class-level names such as `Volume.objects` be reached, and refuse when used."""

    def __getattr__(cls, name: str) -> Missing:
        if name in getattr(cls, "_runtime", ()):
            return Missing(f"{cls.__name__}.{name}", getattr(cls, "_instead", ""))
        raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")


class Unavailable(metaclass=_Meta):
    """Base of the declared-only classes. `_runtime` names what would talk to the platform."""

    _runtime: ClassVar[frozenset[str]] = frozenset()
    _instead: ClassVar[str] = ""

    def __init__(self, name: str = "", **details: object) -> None:
        self._name = name
        self._details = details
        self._where = where.caller()

    def __getattr__(self, name: str) -> Missing:
        if name in type(self)._runtime:
            return Missing(f"{type(self).__name__}.{name}", type(self)._instead)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"modal.{type(self).__name__}({self._name!r})"


def runtime(names: str) -> frozenset[str]:
    """Names of methods, for `_runtime`; most objects have some in common."""
    return frozenset((*names.split(), "client", "get_dashboard_url", "hydrate", "object_id"))
