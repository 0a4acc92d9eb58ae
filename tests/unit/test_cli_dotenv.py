"""The `.env` format of `secret create --from-dotenv`."""

from __future__ import annotations

import pytest

from modalnomad.cli.dotenv import parse_dotenv
from modalnomad.model.errors import UserError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1", {"A": "1"}),
        ("\n# note\n\nA = 1 \nexport B=2\n", {"A": "1", "B": "2"}),
        ("A=", {"A": ""}),
        ("A=a=b", {"A": "a=b"}),
        ("A=x # note", {"A": "x"}),
        ("A=x#y", {"A": "x#y"}),
        ("A='x # \\n y'", {"A": "x # \\n y"}),
        ('A="x\\ny \\"z\\" $B"', {"A": 'x\ny "z" $B'}),
        ('A="one\ntwo"\nB=2', {"A": "one\ntwo", "B": "2"}),
        ("A='' # note", {"A": ""}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=ünïcode", {"A": "ünïcode"}),
    ],
)
def test_values(text: str, values: dict[str, str]) -> None:
    assert parse_dotenv(text, ".env") == values


@pytest.mark.parametrize("text", ["hunter2", "1A=hunter2", 'A="hunter2', "A='hunter2' hunter2"])
def test_a_bad_line_is_told_by_number_without_its_text(text: str) -> None:
    with pytest.raises(UserError, match=r"\.env:2") as caught:
        parse_dotenv(f"OK=1\n{text}", ".env")

    assert "hunter2" not in caught.value.message
