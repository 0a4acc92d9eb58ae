"""Options of `modalnomad run` from annotations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, Optional

import pytest
from modalnomad_sdk.declarations import ParameterDeclaration
from modalnomad_sdk.entry_arguments import Arguments, BadSignature, read_arguments

PARAMETERS = (
    ParameterDeclaration("size", "int"),
    ParameterDeclaration("loud", "bool", True, False),
    ParameterDeclaration("raw", "bytes", True, b""),
)


def every(  # type: ignore[no-untyped-def]
    text: str,
    count: int,
    ratio: float,
    when: datetime,
    mode: Literal["slow", "fast"],
    level: Literal[1, 2] = 1,
    maybe: Optional[int] = None,  # noqa: UP045 - as programs write it
    other: str | None = None,
    two_words: bool = True,
    bare=3,
) -> None: ...


REQUIRED = ["--text", "t", "--count", "3", "--ratio", "0.5", "--when", "2026-01-31", "--mode", "fast"]


def read(function: Callable[..., Any], *arguments: str, parameters: Any = ()) -> Arguments:
    return read_arguments("modalnomad run app.py", "What it does.", parameters, function, arguments)


def test_every_annotation_there_is() -> None:
    given = read(every, *REQUIRED, "--level", "2", "--maybe", "-4", "--other=-x", "--no-two-words", "--bare", "7")

    assert given.kwargs == {
        "text": "t",
        "count": 3,
        "ratio": 0.5,
        "when": datetime(2026, 1, 31),
        "mode": "fast",
        "level": 2,
        "maybe": -4,
        "other": "-x",
        "two_words": False,
        "bare": 7,
    }


def test_what_is_not_given_is_left_to_the_function() -> None:
    assert set(read(every, *REQUIRED).kwargs) == {"text", "count", "ratio", "when", "mode"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (REQUIRED[2:], "required: --text"),
        ([*REQUIRED, "--count", "many"], "--count: invalid int value: 'many'"),
        ([*REQUIRED, "--when", "soon"], "'soon' is no date"),
        ([*REQUIRED, "--mode", "never"], "--mode: invalid choice: 'never'"),
        ([*REQUIRED, "--unknown", "1"], "unrecognized arguments: --unknown 1"),
        ([*REQUIRED, "stray"], "unrecognized arguments: stray"),
        ([*REQUIRED, "--cou", "4"], "unrecognized arguments: --cou 4"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(every, *arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert "usage: modalnomad run app.py" in shown


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(every, "--help", parameters=PARAMETERS)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "What it does." in shown
    for words in ("--two-words, --no-two-words", "{slow,fast}", "[default: 3]", "[of the class; required]"):
        assert words in shown, shown


def test_class_parameters_and_arguments_share_one_set_of_options() -> None:
    def method(self: Any, n: int, /, times: int = 2) -> None: ...

    given = read(method, "--size", "4", "--n", "1", "--raw", "ü", "--loud", parameters=PARAMETERS)

    assert given.parameters == {"size": 4, "raw": "ü".encode(), "loud": True}
    assert (given.args, given.kwargs) == ([1], {})


def test_a_lone_star_takes_everything_as_it_is() -> None:
    def raw(*args: str) -> None: ...

    assert read(raw, "--help", "-x", "a b").args == ["--help", "-x", "a b"]


def test_parameters_the_command_line_cannot_give() -> None:
    def listed(x: list[int]) -> None: ...
    def mixed(x: Literal[1, "a"]) -> None: ...
    def either(x: int | str) -> None: ...
    def unknown(x: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def starred(x: int, *rest: int) -> None: ...
    def named(**rest: int) -> None: ...
    def clash(self: Any, size: int) -> None: ...

    for function, words in (
        (listed, r"takes `x: list\[int\]`, which the command line cannot give"),
        (mixed, "which the command line cannot give"),
        (either, r"x: int \| str"),
        (unknown, "x: NotThere"),
        (starred, r"`\*rest: 'int'`|`\*rest: int`"),
        (named, "`\\*\\*` is not"),
        (clash, "which is a parameter of its class too"),
    ):
        with pytest.raises(BadSignature, match=words):
            read(function, "--x", "1", parameters=PARAMETERS if function is clash else ())
