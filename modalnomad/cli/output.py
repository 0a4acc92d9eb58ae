"""What commands print: text for people, one JSON object a line for programs. Nothing secret passes through here but the
one time a token is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from modalnomad.model.errors import ImageBuildFailed, ModalNomadError, UserCodeFailed

out = Console(highlight=False, soft_wrap=True)
"""Answers: standard output."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress, notices and errors: standard error."""

WIDEST = 100_000
"""Columns of a table at most."""


def emit(record: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output, at once."""
    sys.stdout.write(json_line(record))
    sys.stdout.flush()


def json_line(record: Mapping[str, Any]) -> str:
    """The object with its newline."""
    return json_text(record) + "\n"


def json_text(value: object, indent: int | None = None) -> str:
    """In ASCII where standard output is not UTF-8, which JSON has to be. `indent`: blanks a level, for people."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower() in {"utf-8", "utf8"}
    return json.dumps(value, ensure_ascii=not utf8, default=str, indent=indent)


def write_what_can_be_written() -> None:
    """A character that standard output or standard error cannot show is written as its number (`\\u2713`), instead of
    ending a command that has done its work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def error_record(error: ModalNomadError) -> dict[str, Any]:
    """An error for programs."""
    record: dict[str, Any] = {"message": error.message, "hint": error.hint}
    if isinstance(error, UserCodeFailed | ImageBuildFailed):
        record["output"] = error.output
    return record


def show_error(error: ModalNomadError) -> None:
    """Other people's words first and untouched, unless they were the last thing shown, then our one line, then what to
    do next."""
    told = isinstance(error, ImageBuildFailed) and error.told
    if isinstance(error, UserCodeFailed | ImageBuildFailed) and error.output and not told:
        err.print(error.output, markup=False)
    err.print(f"[bold red]Error:[/] {escape(error.message)}")
    if error.hint:
        err.print(f"[dim]Hint:[/] {escape(error.hint)}")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under bold headings; nothing is cut."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    # As wide as it has to be: a narrow terminal breaks the lines, where rich would shorten headings and cells.
    table.width = Measurement.get(out, out.options.update(max_width=WIDEST), table).maximum
    out.print(table)
