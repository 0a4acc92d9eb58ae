"""What `describe` answers, as errors people can act on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modalnomad.deploy.collect import (
    HINTS,
    Reference,
    check_reference,
    describe_environment,
    read_answer,
)
from modalnomad.model.errors import BackendError, UserCodeFailed, UserError

HERE = Reference("app.py")


@pytest.mark.parametrize(
    ("text", "module", "arguments"),
    [
        ("app.py", False, ["app.py"]),
        ("app.py::shop", False, ["app.py::shop"]),
        ("pkg.mod", True, ["-m", "pkg.mod"]),
        ("pkg.mod::shop", True, ["-m", "pkg.mod::shop"]),
    ],
)
def test_references(text: str, module: bool, arguments: list[str]) -> None:
    assert Reference.parse(text, module=module).arguments == arguments


@pytest.mark.parametrize("text", ["", "::x", "app.py::"])
def test_an_empty_part_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Reference.parse(text)


def test_a_missing_file_is_told_before_python_is_started(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        check_reference(Reference(str(tmp_path / "nothing.py")))
    with pytest.raises(UserError, match="is a folder"):
        check_reference(Reference(str(tmp_path)))


def test_a_dotted_name_without_m_is_guessed() -> None:
    with pytest.raises(UserError) as caught:
        check_reference(Reference("no_such_package.module"))

    assert caught.value.hint == "a module is named with -m: -m no_such_package.module"


def test_words_are_taken_for_no_module() -> None:
    with pytest.raises(UserError) as caught:
        check_reference(Reference("hello world"))

    assert "check the path" in str(caught.value.hint)


@pytest.mark.parametrize("code", sorted(HINTS))
def test_every_error_has_a_hint(code: str) -> None:
    with pytest.raises(UserError) as caught:
        read_answer(HERE, {"error": {"code": code, "message": "it is so", "where": "app.py:3"}}, "")

    assert caught.value.hint
    assert caught.value.message == "app.py:3: it is so"


def test_the_user_s_traceback_is_kept_untouched() -> None:
    traceback = 'Traceback (most recent call last):\n  File "app.py", line 1\n    x = = 1\nKeyError: "x"'
    error = {"code": "module_raised", "message": "app.py raised KeyError", "traceback": traceback + "\n", "hint": "h"}

    with pytest.raises(UserCodeFailed) as caught:
        read_answer(HERE, {"error": error}, "")

    assert caught.value.output == traceback
    assert caught.value.hint == "h"


def test_an_unknown_shape_is_told_without_its_values() -> None:
    answer = {"contract": 1, "anonymous_secrets": {"d": {"KEY": ["hunter2"]}}}

    with pytest.raises(BackendError) as caught:
        read_answer(HERE, answer, "")

    assert "anonymous_secrets" in caught.value.message
    assert "hunter2" not in json.dumps([caught.value.message, caught.value.hint])


def test_the_child_does_not_get_the_platform_s_settings() -> None:
    environment = describe_environment({"MODALNOMAD_HOME": "/x", "PATH": "/bin"})

    assert "MODALNOMAD_HOME" not in environment
    assert environment["PATH"] == "/bin"
