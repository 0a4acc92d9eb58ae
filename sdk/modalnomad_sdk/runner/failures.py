"""A replica that cannot go on, and how that is told on standard error."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from modalnomad_sdk.contract import Exit

from .processes import say

_PACKAGE = str(Path(__file__).parent.parent)


class Failed(Exception):
    """The replica ends with this code. The message, if any, is for standard error; `cause` is the user's own error."""

    def __init__(self, code: Exit, message: str = "", cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.cause = cause


def report(failed: Failed) -> None:
    """The user's own traceback first, without our frames above it; then what it means."""
    if failed.cause is not None:
        trace = user_part(failed.cause.__traceback__)
        traceback.print_exception(type(failed.cause), failed.cause, trace)
    if str(failed):
        say(str(failed))


def user_part(trace: TracebackType | None) -> TracebackType | None:
    """From the first frame of the user's on."""
    here = trace
    while here is not None:
        name = here.tb_frame.f_code.co_filename
        if not name.startswith((_PACKAGE, "<frozen importlib")) and "/importlib/" not in name:
            return here
        here = here.tb_next
    return trace
