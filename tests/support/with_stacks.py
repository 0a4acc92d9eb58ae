"""`python with_stacks.py ARGUMENTS`: `python -m modalnomad ARGUMENTS`, which says on standard error where it stands.

SIGUSR1: the stacks of all threads, whatever they do. SIGUSR2: what each task of the event loop waits for. For a command
that hangs: a loop with nothing to do looks the same in every thread's stack, whoever waits in vain.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import runpy
import signal
import sys
from types import AsyncGeneratorType
from typing import Any

AWAITED = ("cr_await", "gi_yieldfrom", "ag_await")
FRAME = ("cr_frame", "gi_frame", "ag_frame")


def first(thing: object, names: tuple[str, ...]) -> Any:
    """The first of these attributes that it has."""
    return next((value for name in names if (value := getattr(thing, name, None)) is not None), None)


def chain(thing: Any) -> list[str]:
    """From a coroutine down to what it waits for."""
    lines = []
    while thing is not None:
        frame = first(thing, FRAME)
        if frame is None:
            lines.append(f"    {thing!r}")
        else:
            code = frame.f_code
            lines.append(f"    {code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        thing = first(thing, AWAITED)
    return lines


def tell_tasks(*_: object) -> None:
    """All of them, and the generators in which they stand: no frame leads there."""
    lines = []
    for task in asyncio.all_tasks():
        lines += [f"task {task.get_name()}, cancelled {task.cancelling()} times", *chain(task.get_coro())]
    for thing in gc.get_objects():
        if isinstance(thing, AsyncGeneratorType) and thing.ag_running:
            lines += ["generator", *chain(thing)]
    os.write(2, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGUSR2, tell_tasks)
    sys.path[0] = os.getcwd()  # as `-m` has it
    runpy.run_module("modalnomad", run_name="__main__", alter_sys=True)
