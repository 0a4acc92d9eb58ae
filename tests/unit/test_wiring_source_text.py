"""What Nomad's pages show of a program's text: the file that was deployed, and never one that may hold values."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.model.revision import Revision
from modalnomad.wiring.program_text import LARGEST, program_text
from tests.support import rendered
from tests.support.engines import archive

PLAIN = "import modal\napp = modal.App('shop')\nother_env = 1\n"


async def shown(folder: Path, text: str, entry: str = "shop.py") -> str:
    file = folder / "bundle"
    file.write_bytes(archive({entry: text}))
    artifacts = EmbeddedArtifacts(folder / "home")
    made = rendered.revision()
    revision = Revision.model_validate({**made.model_dump(), "bundle": await artifacts.put(file)})
    return await program_text(artifacts, revision)


async def test_it_is_the_deployed_file_wherever_the_deployer_is(tmp_path: Path) -> None:
    assert await shown(tmp_path, PLAIN) == PLAIN
    assert await shown(tmp_path, PLAIN, entry="other.py") == ""
    assert await shown(tmp_path, f"{PLAIN}#{'x' * LARGEST}") == ""


async def test_without_its_bundle_nothing_is_shown(tmp_path: Path) -> None:
    assert await program_text(EmbeddedArtifacts(tmp_path / "home"), rendered.revision()) == ""


@pytest.mark.parametrize(
    "line",
    [
        'modal.Secret.from_dict({"KEY": "s3cret"})',
        '@app.function(env={"KEY": "s3cret"})',
        '@app.function(\n    env = dict(KEY="s3cret"),\n)',
    ],
)
async def test_a_program_with_values_in_it_is_not_shown(tmp_path: Path, line: str) -> None:
    """Whichever of its Functions has them."""
    assert await shown(tmp_path, f"{PLAIN}{line}\n") == ""
