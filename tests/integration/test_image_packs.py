"""Packs: what a deploy puts among the artifacts is all that another machine needs to make the same environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk.store import ImageStore, Inputs, definition_digest
from modalnomad_sdk.store.errors import BuildFailed
from modalnomad_sdk.store.packs import read_pack

from modalnomad.deploy.images import Images
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.hashicorp.packs import ClusterImages, write_pack
from modalnomad.model.errors import UserError
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Image, Source
from modalnomad.model.revision import BuiltImage
from modalnomad.settings import ArtifactSettings
from tests.support.nodes import definition

SOURCE = Source(mode="script", entry="app.py", root="/home/u", module="app")


class Maker:
    """Stands for the deploy's images: tells what it would build, and builds nothing."""

    def __init__(self, wanted: Mapping[str, Any], inputs: Inputs | None = None) -> None:
        self.wanted, self.inputs = wanted, inputs or Inputs()
        self.built = False

    async def __call__(
        self,
        image: Image | None,
        report: Callable[[str], None],
        source: Source | None = None,
        keep: Callable[[Mapping[str, Any], Inputs], None] | None = None,
    ) -> BuiltImage:
        assert keep is not None
        keep(self.wanted, self.inputs)
        self.built = True
        return BuiltImage(digest=Digest(definition_digest(self.wanted)), python="3.12")


@pytest.fixture
def artifacts(tmp_path: Path) -> ObjectArtifacts:
    return ObjectArtifacts(ArtifactSettings(), tmp_path / "home")


async def test_what_was_packed_is_what_is_read(tmp_path: Path, artifacts: ObjectArtifacts) -> None:
    files, source = tmp_path / "files", tmp_path / "source"
    files.write_bytes(b"an archive")
    source.write_bytes(b"a program")
    wanted = definition({"kind": "files", "archive": "f" * 64})
    maker = Maker(wanted, Inputs(archives={"f" * 64: files}, source=source))

    first = await ClusterImages(maker, artifacts)(None, print, SOURCE)
    again = await ClusterImages(maker, artifacts)(None, print, SOURCE)

    assert first.digest == definition_digest(wanted)
    assert first.pack is not None
    assert again.pack == first.pack, "the same bytes"
    await artifacts.get(first.pack, tmp_path / "pack")
    (tmp_path / "out").mkdir()
    found, inputs = read_pack(tmp_path / "pack", tmp_path / "out")
    assert found == wanted
    assert {digest: path.read_bytes() for digest, path in inputs.archives.items()} == {"f" * 64: b"an archive"}
    assert inputs.source is not None
    assert inputs.source.read_bytes() == b"a program"


async def test_another_machine_makes_the_same_environment(tmp_path: Path, artifacts: ObjectArtifacts) -> None:
    """The real images of a deploy: here without anything to download but what every image has."""
    images = Images(ImageStore(tmp_path / "here"))
    kept: list[Mapping[str, Any]] = []

    class Watched:
        async def __call__(
            self,
            image: Image | None,
            report: Callable[[str], None],
            source: Source | None = None,
            keep: Callable[[Mapping[str, Any], Inputs], None] | None = None,
        ) -> BuiltImage:
            def both(wanted: Mapping[str, Any], inputs: Inputs) -> None:
                kept.append(wanted)
                assert keep is not None
                keep(wanted, inputs)

            return await images(image, report, source, both)

    try:
        built = await ClusterImages(Watched(), artifacts)(None, lambda line: None, SOURCE)
    finally:
        images.close()
    assert built.pack is not None
    await artifacts.get(built.pack, tmp_path / "pack")
    (tmp_path / "out").mkdir()

    found, inputs = read_pack(tmp_path / "pack", tmp_path / "out")

    assert definition_digest(found) == built.digest == definition_digest(kept[0])
    there = ImageStore(tmp_path / "there").build(found, None, inputs)
    assert there.name == built.digest
    assert (there / "bin" / "uvicorn").exists()


@pytest.mark.parametrize(
    ("steps", "inputs", "said"),
    [
        ([{"kind": "run", "command": "x", "secrets": [{"name": "db"}]}], Inputs(), "secrets="),
        ([], Inputs(reveal={"****1****": "user:hidden"}, secrets=frozenset({"hidden"})), "user or password"),
    ],
)
async def test_an_image_that_needs_a_credential_is_refused_before_it_is_built(
    artifacts: ObjectArtifacts, steps: list[dict[str, Any]], inputs: Inputs, said: str
) -> None:
    maker = Maker(definition(*steps), inputs)

    with pytest.raises(UserError, match=said) as refused:
        await ClusterImages(maker, artifacts)(None, print, SOURCE)

    assert said == "secrets=" or 'nomad.driver = "docker"' in (refused.value.hint or "")
    assert "hidden" not in f"{refused.value} {refused.value.hint}"
    assert not maker.built
    assert artifacts.stored() == {}


@pytest.mark.parametrize("content", [b"", b"no tar file", b"\0" * 1024])
def test_what_is_no_pack_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pack").write_bytes(content)

    with pytest.raises(BuildFailed, match="pack"):
        read_pack(tmp_path / "pack", tmp_path)


def test_a_pack_holds_no_place_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "files").write_bytes(b"x")

    write_pack(definition(), Inputs(archives={"f" * 64: tmp_path / "files"}), tmp_path / "pack")

    assert str(tmp_path).encode() not in (tmp_path / "pack").read_bytes()
