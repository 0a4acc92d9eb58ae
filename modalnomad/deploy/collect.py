"""Collect: run `modalnomad_sdk.describe` on the user's program in a child process and read what it declares.

User code runs in the child only. What it prints is handed on line by line; what it raises is shown as Python wrote it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from modalnomad.deploy.interpreter import Interpreter
from modalnomad.deploy.scratch import scratch_folder
from modalnomad.model.errors import BackendError, BackendRefused, ModalNomadError, UserCodeFailed, UserError
from modalnomad.model.manifest import Description

DESCRIBE_TIMEOUT = 300.0
"""Seconds a module may take to import."""
OUTPUT_KEPT = 200_000
"""Characters of the child's output kept for an error; the end counts."""

HINTS: Mapping[str, str] = {
    "file_missing": "check the path; it is relative to the folder you are in",
    "not_python": "name a Python file (app.py), or a module with -m (modalnomad serve -m package.module)",
    "syntax_error": "correct the line shown",
    "module_missing": "-m takes a dotted name that imports from the folder you are in",
    "module_raised": "the traceback above is your program's own; correct it and try again",
    "missing_dependency": (
        "install it beside modalnomad (pip install …), or import it inside the function, "
        "or under `with image.imports():`"
    ),
    "many_apps": "name the one you mean: file.py::name",
    "bad_reference": "write file.py, file.py::app_name, or -m package.module",
}
"""What to do next, where `describe` itself says nothing better."""

RAISED = frozenset({"module_raised", "syntax_error", "missing_dependency"})
"""Errors whose traceback is the user's own."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`file.py`, `file.py::name`, or (module) `pkg.mod`, `pkg.mod::name`."""

    target: str
    name: str | None = None
    module: bool = False

    @classmethod
    def parse(cls, text: str, *, module: bool = False) -> Self:
        """Raises UserError for an empty part."""
        target, separator, name = text.partition("::")
        if not target or (separator and not name):
            raise UserError(f"{text!r} names no program", HINTS["bad_reference"])
        return cls(target, name or None, module)

    @property
    def arguments(self) -> list[str]:
        """As `describe` takes them."""
        text = f"{self.target}::{self.name}" if self.name else self.target
        return ["-m", text] if self.module else [text]

    def __str__(self) -> str:
        return " ".join(self.arguments)


def check_reference(reference: Reference) -> None:
    """What can be told without starting Python. Raises UserError."""
    if reference.module:
        return
    path = Path(reference.target)
    if path.is_dir():
        raise UserError(f"{reference.target} is a folder, not a Python file", HINTS["not_python"])
    if not path.exists():
        dotted = path.suffix != ".py" and all(part.isidentifier() for part in reference.target.split("."))
        hint = f"a module is named with -m: -m {reference.target}" if dotted else None
        raise UserError(f"{reference.target}: no such file", hint or HINTS["file_missing"])
    if not os.access(path, os.R_OK):
        raise UserError(f"{reference.target} cannot be read: permission denied", "change its permissions")


async def collect(
    reference: Reference, *, on_output: Callable[[str], None] | None = None, timeout: float = DESCRIBE_TIMEOUT
) -> Description:
    """Describe the program once. See `Collector`."""
    async with Collector(reference, timeout=timeout) as collector:
        return await collector.collect(on_output)


class Collector:
    """Describes one program, as often as asked. Owns the interpreter it may keep warm for the next time."""

    def __init__(self, reference: Reference, *, timeout: float = DESCRIBE_TIMEOUT) -> None:
        self._reference = reference
        self._timeout = timeout
        self._warm: Interpreter | None = None

    async def collect(self, on_output: Callable[[str], None] | None = None) -> Description:
        """`on_output` gets each line user code prints while it is imported.

        Raises UserCodeFailed (their traceback in `output`) or UserError. Cancelling kills the child and its own.
        """
        reference = self._reference
        check_reference(reference)
        kept: list[str] = []

        def take(line: str) -> None:
            kept.append(line)
            if on_output is not None:
                on_output(line)

        interpreter, self._warm = self._warm, None
        if interpreter is None or not interpreter.alive:
            if interpreter is not None:
                await interpreter.close()
            interpreter = await Interpreter.start(describe_environment(os.environ))
        async with interpreter:
            with scratch_folder("modalnomad-describe-") as folder:
                out = folder / "description.json"
                try:
                    async with asyncio.timeout(self._timeout):
                        code = await interpreter.run([*reference.arguments, "--out", str(out)], take)
                except TimeoutError:
                    raise UserCodeFailed(
                        f"{reference}: not imported within {self._timeout:g} s",
                        "\n".join(kept)[-OUTPUT_KEPT:],
                        "move slow work out of the module's top level, into the function or an @modal.enter method",
                    ) from None
                output = "\n".join(kept)[-OUTPUT_KEPT:]
                try:
                    answer = json.loads(out.read_bytes())
                except (OSError, ValueError):
                    if out.exists():
                        raise _unwritten(reference, folder) from None
                    raise _died(reference, code, output) from None
        return read_answer(reference, answer, output)

    async def warm_up(self, modules: Sequence[str]) -> None:
        """Have the next interpreter started and these modules imported by the time it is needed, on idle time only."""
        if self._warm is None:
            self._warm = await Interpreter.start(describe_environment(os.environ), modules)

    async def close(self) -> None:
        """End the warm interpreter."""
        interpreter, self._warm = self._warm, None
        if interpreter is not None:
            await interpreter.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def read_answer(reference: Reference, answer: Any, output: str) -> Description:
    """The Description in `describe`'s file, or the error in it as an exception."""
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise error_of(reference, answer["error"], output)
    try:
        return Description.model_validate(answer)
    except ValidationError as error:
        # Values are left out: they may be a program's secrets.
        places = ", ".join(".".join(map(str, e["loc"])) + f" ({e['msg']})" for e in error.errors(include_input=False))
        raise BackendError(
            f"the SDK described {reference} in a shape this version of modalnomad does not know: {places}",
            "install the same version of modalnomad and modalnomad-sdk",
        ) from None


def error_of(reference: Reference, error: Mapping[str, Any], output: str) -> ModalNomadError:
    """`describe`'s error as an exception that names the program, with a hint."""
    code = str(error.get("code") or "")
    message = str(error.get("message") or "the program could not be described").removeprefix(": ")
    where = str(error.get("where") or "")
    if where and where not in message:
        message = f"{where}: {message}"
    elif Path(reference.target).name not in message:
        message = f"{reference.target}: {message}"
    hint = str(error.get("hint") or "") or HINTS.get(code)
    traceback = str(error.get("traceback") or "")
    if traceback and code in RAISED:
        return UserCodeFailed(message, traceback.rstrip("\n"), hint)
    return UserError(message, hint)


def _died(reference: Reference, code: int, output: str) -> ModalNomadError:
    how = f"was ended by signal {-code}" if code < 0 else f"exited with {code}"
    return UserCodeFailed(
        f"{reference}: the program {how} while it was imported",
        output.rstrip("\n"),
        "a module that is served must import to its end: put what exits under `if __name__ == '__main__':`",
    )


def _unwritten(reference: Reference, folder: Path) -> ModalNomadError:
    """The file was begun: the program itself was imported to its end."""
    return BackendRefused(
        f"what {reference} declares could not be written to {folder}", "free some space there, and try again"
    )


def describe_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: the user's own, unbuffered. The platform's settings are not the program's business."""
    kept = {name: value for name, value in base.items() if not name.startswith("MODALNOMAD_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}
