"""The reference pages say what the code says."""

from __future__ import annotations

import pytest

from modalnomad.cli.reference import PAGES, commands, pages
from tests.support.repository import ROOT


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_scripts_docs_writes(name: str) -> None:
    page = ROOT / "docs" / name

    assert page.read_text("utf-8") == pages()[name], "run scripts/docs"


def test_every_setting_says_what_it_means() -> None:
    rows = [line for line in pages()["configuration.md"].splitlines() if line.startswith("| `")]

    assert len(rows) > 20
    assert not [row for row in rows if row.endswith("|  |")]


def test_every_command_has_json_env_and_an_example() -> None:
    import typer

    from modalnomad.cli.main import app

    for path, command in commands(typer.main.get_command(app), "modalnomad"):
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--env"} <= options, path
        assert "Example: `modalnomad " in f"{command.help} {command.epilog}", path
