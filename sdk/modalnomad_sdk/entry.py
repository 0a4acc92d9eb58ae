"""A local entrypoint, or a Function called directly: the user's side of `modalnomad run`.

    python -m modalnomad_sdk.entry <fd> [--write-result FILE] [-m] <target[::name]> [-- arguments]

`fd`: a connected Unix stream socket, whose other end the command holds (see `entry_line`). The program is imported and
described, its arguments are read, and when the command has built what is needed it runs here, in the command's own
interpreter and terminal. Exit code: 0; 1 the program raised, or the platform could not run it; 2 wrong usage; 130
interrupted; what the program gave to `sys.exit`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    sys.path[:1] = []

import asyncio
import atexit
import inspect
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import calling
from .calling import PlatformError, RemoteTraceback
from .describe import DescribeError, load
from .description import describe_app
from .entry_arguments import Arguments, BadSignature, read_arguments
from .entry_choice import Chosen, choose
from .entry_line import SocketLine
from .exception import Error

INTERRUPTED = 130
_SDK = os.path.dirname(os.path.abspath(__file__)) + os.sep


class _Refused(Exception):
    """Nothing was run. The message is for standard error."""


def main(argv: list[str]) -> int:
    """Exit code; see the module's docstring."""
    signal.signal(signal.SIGINT, _interrupted_once)
    line = SocketLine(int(argv[0]), lambda: os._exit(1))
    rest = argv[1:]
    write_to = None
    if rest[:1] == ["--write-result"]:
        write_to = Path(os.path.abspath(rest[1]))
        rest = rest[2:]
    module = rest[:1] == ["-m"]
    reference, arguments = (rest[1], rest[2:]) if module else (rest[0], rest[1:])
    sys.dont_write_bytecode = True  # see `describe`
    try:
        return _run(line, reference, module, arguments[1:], write_to)
    except DescribeError as error:
        line.tell({"error": error.data})
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(line: SocketLine, reference: str, module: bool, arguments: list[str], write_to: Path | None) -> int:
    target, _, name = reference.partition("::")
    loaded, source = load(target, module)
    chosen = choose(loaded, name or None, target)
    program = f"modalnomad run {'-m ' if module else ''}{reference}"
    try:
        given = read_arguments(program, chosen.doc, chosen.parameters, chosen.signature, arguments)
    except BadSignature as error:
        raise DescribeError("declaration", f"{chosen.where}: `{chosen.name}` {error}") from error
    try:
        description = describe_app(chosen.app, source)
    except Error as error:
        raise DescribeError("declaration", str(error)) from error
    line.tell({"described": {"needs": list(chosen.needs), "name": chosen.name}}, json.dumps(description).encode())
    line.wait_for_start()
    calling.connect(line)
    try:
        code, result = _call(chosen, given)
    finally:
        calling.connect(None)
    if code == 0:
        try:
            _deliver(line, chosen, result, write_to)
        except (_Refused, OSError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
    return code


def _call(chosen: Chosen, given: Arguments) -> tuple[int, Any]:
    """Exit code, and what was returned."""
    try:
        return 0, _awaited(chosen.bind(given.parameters), given)
    except KeyboardInterrupt:
        return INTERRUPTED, None
    except PlatformError as error:
        if chosen.direct:
            _show_platform_error(error)
        else:
            _show(error)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0, None
        sys.stderr.write(f"{error.code}\n")
    except BaseException as error:
        if chosen.direct and isinstance(error.__cause__, RemoteTraceback):
            sys.stderr.write(error.__cause__.text)
        elif chosen.direct and isinstance(error, Error):
            sys.stderr.write(f"Error: {error}\n")
        else:
            _show(error)
    return 1, None


def _awaited(function: Callable[..., Any], given: Arguments) -> Any:
    result = function(*given.args, **given.kwargs)
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def _deliver(line: SocketLine, chosen: Chosen, result: Any, write_to: Path | None) -> None:
    """To the file, to the command, or to standard output. Raises _Refused, OSError."""
    if write_to is not None:
        if isinstance(result, str):
            write_to.write_text(result, "utf-8")
        elif isinstance(result, bytes):
            write_to.write_bytes(result)
        else:
            raise _Refused(
                f"Error: --write-result takes a str or bytes, and `{chosen.name}` returned a {type(result).__name__}: "
                "let it return the text of the file"
            )
        return
    try:
        record = {"result": json.loads(json.dumps(result, allow_nan=False))}
    except (TypeError, ValueError, RecursionError):
        record = {"repr": repr(result)}
    text = str(result) if chosen.direct and result is not None else None
    line.finish({**record, "text": text})


def _show_platform_error(error: PlatformError) -> None:
    if error.output:
        sys.stderr.write(error.output.rstrip("\n") + "\n")
    sys.stderr.write(f"Error: {error}\n")


def _show(error: BaseException) -> None:
    """As Python prints it, without our own frames."""
    shown = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    pending: list[traceback.TracebackException | None] = [shown]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        own = [frame for frame in one.stack if not _is_ours(frame.filename)]
        if own:
            one.stack = traceback.StackSummary.from_list(own)
        pending += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]
    sys.stderr.write("".join(shown.format()))


def _is_ours(filename: str) -> bool:
    return filename.startswith((_SDK, asyncio.__path__[0], "<frozen"))


_interrupted = False


def _interrupted_once(_number: int, _frame: object) -> None:
    """A Ctrl-C in the terminal reaches us twice: from there, and from the command."""
    global _interrupted  # noqa: PLW0603 - set in a signal handler
    if not _interrupted:
        _interrupted = True
        raise KeyboardInterrupt


def _leave(code: int) -> None:
    """Without waiting for threads that the user's code left behind."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # the user's code closed or replaced it, or nobody reads it any more
    os._exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
