"""What a program declares, as JSON: `python -m modalnomad_sdk.describe <file.py[::app] | -m mod[::app]> --out FILE`.

FILE (0600) holds a `modalnomad.model.manifest.Description` and the exit code is 0; or {"error": {code, message, where,
traceback, hint}} and 1. Standard output and error belong to the user's code. The process ends without waiting for
threads that the user's code left behind.
"""

from __future__ import annotations

import sys

# `python -m` puts the working directory first: a `json.py` of the user's there is not what this module means.
if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    sys.path[:1] = []

import json
import os
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from . import notices, where
from .alias import NAME, PACKAGE
from .app import App
from .description import SourceOf, describe_app
from .exception import Error
from .loading import LoadingError, ModuleBroken, ModuleMissing, apps_of, load_module
from .partial import Handle

_SDK = os.path.dirname(os.path.abspath(__file__)) + os.sep
_HINT_DEPENDENCY = (
    "install the package that provides it here, beside modalnomad; or import it inside the function; or put the import "
    "under `with image.imports():`"
)
_HINT_APP = 'write `app = modal.App("some-name")` at the top level, not inside a function or under `if __name__ …`'
_HINT_FUNCTION = "put @app.function() and, under it, @modal.fastapi_endpoint() (or another web decorator) on a function"


class DescribeError(Exception):
    """Ends with {"error": …} in the file."""

    def __init__(self, code: str, message: str, *, where: str = "", traceback: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.data = {"code": code, "message": message, "where": where, "traceback": traceback, "hint": hint}


def parse(arguments: list[str]) -> tuple[str, str | None, bool, str]:
    """(file or module, name of the App's variable, is it a module, output file) of the command line."""
    rest = list(arguments)
    out = ""
    if "--out" in rest[:-1]:
        at = rest.index("--out")
        out = rest[at + 1]
        del rest[at : at + 2]
    module = rest[:1] == ["-m"]
    rest = rest[1:] if module else rest
    if len(rest) != 1 or not out:
        sys.stderr.write("usage: python -m modalnomad_sdk.describe <file.py[::app] | -m pkg.mod[::app]> --out FILE\n")
        raise SystemExit(2)
    target, separator, name = rest[0].partition("::")
    if not target or (separator and not name):
        raise SystemExit(2)
    return target, name or None, module, out


def describe(target: str, name: str | None, module: bool) -> dict[str, Any]:
    """Load the program and describe its App.

    Raises:
        DescribeError: with one of the codes of the module's docstring.
    """
    loaded, source = load(target, module)
    try:
        return describe_app(_choose(loaded, name, target), source)
    except Error as error:
        raise DescribeError("declaration", str(error)) from error


def load(target: str, module: bool) -> tuple[ModuleType, SourceOf]:
    """Import the program.

    Raises:
        DescribeError: it is not there, or it cannot be imported.
    """
    notices.collect()
    source = _module_source(target) if module else _script_source(target)
    try:
        return load_module(f"{source.mode}:{source.entry}", Path(source.root)), source
    except ModuleMissing as error:
        code = "module_missing" if module else "file_missing"
        raise DescribeError(code, str(error)) from error
    except ModuleBroken as error:
        raise _broken(error, source) from error
    except LoadingError as error:
        raise DescribeError("bad_reference", str(error)) from error


def _script_source(target: str) -> SourceOf:
    path = Path(os.path.abspath(target))
    if not path.exists():
        hint = ""
        if "/" not in target and not target.endswith(".py"):
            hint = f"a module is named with -m: -m {target}"
        raise DescribeError("file_missing", f"{target}: no such file", hint=hint)
    if path.is_dir() or path.suffix != ".py":
        what = "a folder" if path.is_dir() else "not a Python file: its name does not end in .py"
        raise DescribeError("not_python", f"{target} is {what}")
    stem = path.stem
    if "." in stem:
        raise DescribeError(
            "bad_reference", f"{target}: dots in the file's name make it impossible to import", hint="rename the file"
        )
    if stem in {NAME, PACKAGE, "modalnomad"} or stem in sys.stdlib_module_names:
        raise DescribeError(
            "bad_reference",
            f"{target}: a module called `{stem}` would hide the one that Python (or this program) needs",
            hint="rename the file",
        )
    return SourceOf("script", path.name, str(path.parent), stem)


def _module_source(target: str) -> SourceOf:
    if target.endswith(".py") or "/" in target:
        raise DescribeError(
            "bad_reference", f"-m {target}: that is a path", hint=f"leave -m out, or write -m {_dotted(target)}"
        )
    return SourceOf("module", target, os.getcwd(), target)


def _dotted(path: str) -> str:
    return path.removesuffix(".py").strip("./").replace("/", ".")


def own_apps(module: ModuleType, target: str) -> dict[str, App]:
    """Apps of the module by variable; one that another includes is part of that one. Raises DescribeError: none."""
    apps = apps_of(module)
    if not apps:
        raise DescribeError("no_app", f"{target} has no modal.App at its top level", hint=_HINT_APP)
    return {
        variable: app for variable, app in apps.items() if not any(app in other.included for other in apps.values())
    }


def _choose(module: ModuleType, name: str | None, target: str) -> App:
    if name is not None:
        app = _named(module, name, target, apps_of(module))
    else:
        own = own_apps(module, target)
        if len(own) > 1:
            listed = ", ".join(f"`{variable}` ({app.where})" for variable, app in own.items())
            raise DescribeError(
                "many_apps",
                f"{target} has {len(own)} Apps: {listed}",
                hint=f"name the one you mean: {target}::{next(iter(own))}",
            )
        app = next(iter(own.values()))
    if not app.declarations:
        raise DescribeError("no_functions", f"{target}: the App has no functions", where=app.where, hint=_HINT_FUNCTION)
    return app


def _named(module: ModuleType, name: str, target: str, apps: dict[str, App]) -> App:
    value = vars(module).get(name)
    if isinstance(value, App):
        return value
    app = getattr(value, "_app", None) if isinstance(value, Handle) else None
    if isinstance(app, App):
        return app
    found = "is not there" if name not in vars(module) else f"is a {type(value).__name__}, not a modal.App"
    listed = ", ".join(f"`{variable}`" for variable in apps) or "none"
    raise DescribeError("bad_reference", f"{target}::{name}: `{name}` {found} (Apps of the module: {listed})")


def _broken(error: ModuleBroken, source: SourceOf) -> DescribeError:
    cause = error.__cause__
    assert cause is not None
    place = _last_user_line(cause.__traceback__)
    if isinstance(cause, SyntaxError):
        if cause.filename and cause.lineno:
            place = where.show(cause.filename, cause.lineno)
        return DescribeError("syntax_error", f"{place}: {cause.msg}", where=place, traceback=_traceback(cause))
    if _raised_here(cause):
        return DescribeError("declaration", str(cause), where="" if place in str(cause) else place)
    if isinstance(cause, ModuleNotFoundError) and cause.name and not _is_own(cause.name, source):
        message = f"{place}: there is no module `{cause.name}` here"
        return DescribeError(
            "missing_dependency", message, where=place, traceback=_traceback(cause), hint=_HINT_DEPENDENCY
        )
    message = str(error)
    if isinstance(cause, SystemExit):
        message = f"{source.entry} ended the process while it was imported: sys.exit({cause.code!r})"
    return DescribeError("module_raised", message, where=place, traceback=_traceback(cause))


def _is_own(name: str, source: SourceOf) -> bool:
    """Is it a part of this API, or of the user's own package, rather than something to install?"""
    top = name.partition(".")[0]
    root = Path(source.root)
    return top in {NAME, PACKAGE} or (root / top).is_dir() or (root / f"{top}.py").exists()


def _frames(traceback: TracebackType | None) -> list[TracebackType]:
    found = []
    while traceback is not None:
        found.append(traceback)
        traceback = traceback.tb_next
    return found


def _is_user_code(traceback: TracebackType) -> bool:
    name = traceback.tb_frame.f_code.co_filename
    return not name.startswith((_SDK, "<frozen importlib"))


def _last_user_line(traceback: TracebackType | None) -> str:
    root = os.getcwd() if where.root() is None else str(where.root())
    own = [frame for frame in _frames(traceback) if _is_user_code(frame)]
    inside = [frame for frame in own if frame.tb_frame.f_code.co_filename.startswith(root)] or own
    return where.show(inside[-1].tb_frame.f_code.co_filename, inside[-1].tb_lineno) if inside else ""


def _raised_here(error: BaseException) -> bool:
    frames = _frames(error.__traceback__)
    return bool(frames) and frames[-1].tb_frame.f_code.co_filename.startswith(_SDK) and isinstance(error, Exception)


def _traceback(error: BaseException) -> str:
    """As Python prints it, from the user's first line on."""
    import traceback

    frames = _frames(error.__traceback__)
    first = next((frame for frame in frames if _is_user_code(frame)), None)
    return "".join(traceback.format_exception(type(error), error, first))


def _write(path: str, data: dict[str, Any]) -> None:
    """Mode 0600: it may hold values of secrets."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchmod(handle, 0o600)
        json.dump(data, file)


def main(arguments: list[str]) -> int:
    """Exit code; see the module's docstring."""
    target, name, module, out = parse(arguments)
    out = os.path.abspath(out)
    # Compiled code is told from its source by size and whole seconds: an edit of the same length, within the second of
    # the last one, would not be seen. Nor is the user's folder ours to write into.
    sys.dont_write_bytecode = True
    try:
        data = describe(target, name, module)
        code = 0
    except DescribeError as error:
        data = {"error": error.data}
        code = 1
    try:
        _write(out, data)
    except OSError as error:
        sys.stderr.write(f"modalnomad: cannot write {out}: {error.strerror}\n")
        return 1
    return code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # the user's code closed or replaced it
    # Threads that the user's module started must not keep this process alive.
    os._exit(code)
