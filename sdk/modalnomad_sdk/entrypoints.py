"""Functions that run on the user's machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LocalEntrypoint:
    """A function that runs on the user's machine."""

    def __init__(self, raw: Callable[..., Any], tag: str, app: object) -> None:
        self.raw = raw
        self.tag = tag
        self.app = app
        self.__name__ = raw.__name__
        self.__doc__ = raw.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.raw(*args, **kwargs)
