"""Things said once at deploy: accepted without effect, or written the old way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """`code` groups notices, `where` is `file.py:12`."""

    code: str
    message: str
    where: str = ""


_notices: list[Notice] | None = None


def collect() -> None:
    """Keep notices for `collected` from here on, instead of giving Python warnings."""
    global _notices  # noqa: PLW0603 - one program is described per process
    _notices = []


def collected() -> tuple[Notice, ...]:
    """Notices so far, each once."""
    return tuple(dict.fromkeys(_notices or ()))


def note(code: str, message: str, place: str) -> None:
    """Record a notice; where nobody collects them, a Python warning."""
    if _notices is not None:
        _notices.append(Notice(code, message, place))
        return
    from . import state
    from .exception import DeprecationError

    # A replica says nothing: it was said at deploy, and would be repeated by every start.
    if state.replica() is None:
        category = DeprecationError if code.startswith("old_") else UserWarning
        warnings.warn(f"{place}: {message}", category, stacklevel=3)
