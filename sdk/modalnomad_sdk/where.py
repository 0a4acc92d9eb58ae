"""Where in the user's program something was written: `file.py:12`."""

from __future__ import annotations

import os
import sys
from types import FrameType

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_root: str | None = None


def set_root(root: str | None) -> None:
    """Folder that file names in messages are relative to (the program's root); None: the working directory."""
    global _root  # noqa: PLW0603 - one program is loaded per process
    _root = root


def root() -> str | None:
    """That folder, if one was set."""
    return _root


def show(filename: str, line: int) -> str:
    """`file.py:12`, relative to the program's root where the file is below it."""
    base = _root if _root is not None else os.getcwd()
    absolute = os.path.abspath(filename)
    if absolute.startswith(base.rstrip(os.sep) + os.sep):
        absolute = os.path.relpath(absolute, base)
    return f"{absolute}:{line}"


def _user_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame


def caller() -> str:
    """Line of the nearest frame outside the SDK; empty when there is none."""
    frame = _user_frame()
    return show(frame.f_code.co_filename, frame.f_lineno) if frame is not None else ""
