"""The reference pages say what the code says."""

from __future__ import annotations

import re

import pytest

from modalnomad.cli.reference import PAGES, commands, pages
from modalnomad.cli.reference_watching import ALERTS, QUERIES
from modalnomad.router.metrics import ALL
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


def test_queries_and_alerts_name_metrics_and_labels_that_exist() -> None:
    metrics = {metric.name: metric for _, group in ALL for metric in group}
    expressions = [query for _, query in QUERIES] + [expression for _, _, expression in ALERTS]

    assert len(expressions) > 10
    for expression in expressions:
        named = re.findall(r"\b(modalnomad_\w+)", expression)
        for name in named:
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            metric = metrics.get(name) or metrics[base]
            assert (metric.kind == "histogram") == (name != base), expression
        used = set(re.findall(r"(\w+)=~?\"", expression)) | {
            label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")
        }
        known = {label for name, metric in metrics.items() if name in expression for label in metric.labels}
        assert used - known <= {"le", "job"}, expression
