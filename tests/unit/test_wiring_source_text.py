"""What Nomad's UI is told of a program's text: the right file's, and never one that may hold values."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalnomad.model.manifest import Source
from modalnomad.model.revision import Revision
from modalnomad.wiring.cluster_deploy import source_text
from tests.support import rendered

PLAIN = "import modal\napp = modal.App('shop')\nother_env = 1\n"


def of(root: Path, where: str = "shop.py:3") -> Revision:
    source = Source(mode="script", entry="shop.py", root=str(root), module="shop")
    return rendered.revision(where=where).model_copy(update={"source": source})


def test_it_is_the_file_of_the_program_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, text in (("here", "another"), ("there", PLAIN)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "shop.py").write_text(text)
    monkeypatch.chdir(tmp_path / "here")

    assert source_text(of(tmp_path / "there")) == PLAIN
    assert source_text(of(tmp_path / "there", str(tmp_path / "there" / "shop.py") + ":3")) == PLAIN
    assert source_text(of(tmp_path / "elsewhere")) == ""


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

    assert source_text(of(tmp_path)) == ""
