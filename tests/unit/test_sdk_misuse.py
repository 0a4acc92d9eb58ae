"""Every row of the misuse table raises, and its message says where, what was found and what to write."""

from __future__ import annotations

from collections.abc import Iterator

import modalnomad_sdk.experimental  # noqa: F401 - loaded here, so that no test has to
import pytest
from modalnomad_sdk import state, where

from tests.support.misuse import PRELUDE, ROWS, Misuse


@pytest.fixture(autouse=True)
def _root() -> Iterator[None]:
    where.set_root("/program")
    state.set_loading(True)
    yield
    state.set_loading(False)
    where.set_root(None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_misuse_is_an_error_that_says_where_and_what_to_write(row: Misuse) -> None:
    program = PRELUDE.replace("import modal", "import modalnomad_sdk as modal") + row.program
    code = compile(program, "/program/wrong.py", "exec")

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the class is compared below, by name
        exec(code, {"__name__": "wrong"})

    assert row.error in [base.__name__ for base in type(caught.value).__mro__], repr(caught.value)
    message = str(caught.value)
    assert [word for word in row.words if word not in message] == [], message
    if row.marked != "-":
        assert f"wrong.py:{_line(program, row.marked)}: " in message, message


def _line(program: str, marked: str) -> int:
    """Line that the message must name."""
    lines = program.splitlines()
    found = [n for n, line in enumerate(lines, 1) if (marked in line if marked else line.lstrip().startswith("@"))]
    return found[-1]


def test_rows_are_named_once() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) > 80
