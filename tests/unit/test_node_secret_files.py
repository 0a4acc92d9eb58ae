"""Files of secrets that Nomad wrote: exact, or refused without a word of what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modalnomad_sdk.contract import Exit
from modalnomad_sdk.node import secret_files
from modalnomad_sdk.node.refused import Refused
from modalnomad_sdk.node.secret_files import read_secrets

from modalnomad.model.ids import RESERVED_KEY


def test_later_files_win(tmp_path: Path) -> None:
    (tmp_path / "00-a.json").write_text('{"A": "1", "B": "x"}')
    (tmp_path / "01-b.json").write_text('{"A": "2"}')

    assert read_secrets(str(tmp_path), "00-a.json,01-b.json") == {"A": "2", "B": "x"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"A": "hidden', "not JSON"),
        ('["hidden"]', "not an object"),
        ({"A": 12345}, "'A' is not a text"),
        ({"A": None}, "'A' is not a text"),
        ({"PATH": "hidden"}, "reserved"),
        ({"LD_PRELOAD": "hidden"}, "reserved"),
        ({"MODALNOMAD_APP": "hidden"}, "reserved"),
        ({"A": "hidden\0"}, "NUL"),
        ({"A=B": "hidden"}, "no name"),
        ({"": "hidden"}, "no name"),
        ('{"A": "hidden\\ud800"}', "not Unicode"),
    ],
)
def test_what_cannot_be_variables_is_refused_unseen(tmp_path: Path, content: object, said: str) -> None:
    (tmp_path / "00-db.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")

    with pytest.raises(Refused, match=said) as refused:
        read_secrets(str(tmp_path), "00-db.json")

    assert refused.value.code == Exit.BAD_CONFIGURATION
    assert "00-db.json" in str(refused.value)
    assert "hidden" not in str(refused.value)
    assert "12345" not in str(refused.value)
    assert refused.value.__cause__ is None, "a traceback would show what was read"


@pytest.mark.parametrize("names", ["none.json", "../other.json", "", "a.json,,b.json", "."])
def test_only_files_of_the_task_are_read(tmp_path: Path, names: str) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path.parent / "other.json").write_text("{}")

    with pytest.raises(Refused):
        read_secrets(str(tmp_path), names)


def test_the_same_names_are_reserved_as_when_they_are_stored() -> None:
    assert secret_files.RESERVED.pattern == RESERVED_KEY.pattern
