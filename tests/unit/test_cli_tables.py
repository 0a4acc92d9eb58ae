"""Tables of commands on terminals of any width."""

from __future__ import annotations

import pytest

from modalnomad.cli import output


@pytest.mark.parametrize("width", [1, 40, 200])
def test_nothing_is_cut(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output.out, "_width", width)
    columns = ("Environment", "State", "Deployed at", "Endpoints and more")
    row = ("staging", "deployed", "2026-01-01 00:00:00", "x" * 70 + " [y]")
    output.show_table(columns, [row])
    heading, line = capsys.readouterr().out.splitlines()
    for column, cell in zip(columns, row, strict=True):
        assert column in heading
        assert cell in line
