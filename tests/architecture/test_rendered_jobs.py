"""The jobs in the checkout are what the code renders."""

from __future__ import annotations

from tests.support.rendered import FOLDER, files


def test_the_rendered_jobs_are_what_scripts_rendered_writes() -> None:
    found = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}

    assert found == files(), "run scripts/rendered"
