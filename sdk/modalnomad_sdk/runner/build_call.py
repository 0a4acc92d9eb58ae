"""`Image.run_function`, inside the environment that is being built: loads the program and calls the function.

`runner/__main__.py call FILE`, in the working directory of the step. FILE is JSON: {"source" (as contract.ENV_SOURCE),
"root", "function" (qualified name), "args", "kwargs", "timeout" (seconds)}. Exit status 0; 1: the program or the
function raised, their traceback is on standard error; 124: it took too long.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from modalnomad_sdk import loading, state
from modalnomad_sdk.contract import Exit
from modalnomad_sdk.functions import Function
from modalnomad_sdk.partial import PartialFunction

from .failures import Failed, report

TIMED_OUT = 124


def main(path: str) -> int:
    """Exit status."""
    call = json.loads(Path(path).read_text("utf-8"))
    # The source lies beside the image's files only for this call: nothing compiled from it may stay.
    sys.dont_write_bytecode = True
    sys.argv = [call["source"].partition(":")[2]]
    state.enter_replica(None, {})
    _limit(call["function"], float(call["timeout"]))
    try:
        _run(call)
    except loading.ModuleBroken as error:
        return _failed(str(error), error.__cause__)
    except loading.LoadingError as error:
        return _failed(str(error), None)
    except SystemExit as error:
        return _failed(f"`{call['function']}` ended the process ({error.code!r})", None) if error.code else 0
    except BaseException as error:
        return _failed("", error)
    return 0


def _run(call: dict[str, Any]) -> None:
    module = loading.load_module(call["source"], Path(call["root"]))
    found: Any = module
    for name in call["function"].split("."):
        found = getattr(found, name, None)
    if isinstance(found, PartialFunction):
        found = found.raw
    function = found.local if isinstance(found, Function) else found
    if not callable(function):
        raise loading.FunctionNotFound(f"{module.__name__} has no function {call['function']}")
    result = function(*call["args"], **call["kwargs"])
    if inspect.isawaitable(result):
        asyncio.run(_awaited(result))


async def _awaited(result: Awaitable[Any]) -> None:
    await result


def _failed(message: str, cause: BaseException | None) -> int:
    report(Failed(Exit.USER_CODE_FAILED, message, cause))
    return 1


def _limit(name: str, seconds: float) -> None:
    """End the process when it takes longer, whatever it is doing."""

    def end() -> None:
        report(Failed(Exit.STARTUP_TIMEOUT, f"`{name}` did not end within its timeout of {seconds:g} s"))
        os._exit(TIMED_OUT)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
