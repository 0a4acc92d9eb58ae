"""What Nomad's UI is told of a program's text: never one that may hold values."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalnomad.model.revision import Revision
from modalnomad.wiring.cluster_deploy import source_text
from tests.support import rendered

PLAIN = "import modal\napp = modal.App('shop')\nother_env = 1\n"


def of(file: Path) -> Revision:
    return rendered.revision(where=f"{file}:3")


def test_it_is_the_functions_file(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PLAIN)

    assert source_text(of(tmp_path / "shop.py")) == PLAIN
    assert source_text(of(tmp_path / "none.py")) == ""


@pytest.mark.parametrize(
    "line",
    [
        'modal.Secret.from_dict({"KEY": "s3cret"})',
        '@app.function(env={"KEY": "s3cret"})',
        '@app.function(\n    env = dict(KEY="s3cret"),\n)',
    ],
)
def test_a_program_with_values_in_it_is_not_shown(tmp_path: Path, line: str) -> None:
    """Whichever of its Functions has them."""
    (tmp_path / "shop.py").write_text(f"{PLAIN}{line}\n")

    assert source_text(of(tmp_path / "shop.py")) == ""
