"""Images for nodes that make environments themselves: all that one needs, as one artifact (see store/packs.py of the
SDK). The same image gives the same bytes."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from modalnomad_sdk.store import Inputs
from modalnomad_sdk.store.packs import ARCHIVES, DEFINITION, SOURCE

from modalnomad.model.errors import UserError
from modalnomad.model.manifest import Image, Source
from modalnomad.model.revision import BuiltImage
from modalnomad.ports.artifacts import Artifacts

DOCKER: Final = 'set nomad.driver = "docker", which builds images here and not on the nodes'


class ImageMaker(Protocol):
    """Builds an image on this machine, as `deploy.images.Images`. `keep` is told its definition and what building it
    needs, before anything is built; the files are there until it returns."""

    async def __call__(
        self,
        image: Image | None,
        report: Callable[[str], None],
        source: Source | None = None,
        keep: Callable[[Mapping[str, Any], Inputs], None] | None = None,
    ) -> BuiltImage: ...


class ClusterImages:
    """The `ImageBuilder` of deploys to nodes that make environments themselves: built here, so that what cannot be
    built is told now, and packed for the nodes."""

    def __init__(self, images: ImageMaker, artifacts: Artifacts) -> None:
        self._images = images
        self._artifacts = artifacts

    async def __call__(self, image: Image | None, report: Callable[[str], None], source: Source) -> BuiltImage:
        """With its `pack`, which is among the artifacts. Raises as the images do, BackendError, and UserError for an
        image that needs a credential to be made: nodes are not given any."""
        with tempfile.TemporaryDirectory(prefix="modalnomad-pack-") as folder:
            pack = Path(folder) / "pack.tar"
            built = await self._images(
                image, report, source, lambda definition, inputs: write_pack(definition, inputs, pack)
            )
            return built.model_copy(update={"pack": await self._artifacts.put(pack)})


def write_pack(definition: Mapping[str, Any], inputs: Inputs, target: Path) -> None:
    """Raises UserError for one that needs a credential, OSError."""
    refuse_credentials(definition, inputs)
    text = json.dumps(definition, sort_keys=True, separators=(",", ":")).encode()
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_entry(DEFINITION, len(text)), io.BytesIO(text))
        files = {f"{ARCHIVES}{digest}": path for digest, path in sorted(inputs.archives.items())}
        if inputs.source is not None:
            files[SOURCE] = inputs.source
        for name, path in files.items():
            with path.open("rb") as file:
                tar.addfile(_entry(name, path.stat().st_size), file)


def refuse_credentials(definition: Mapping[str, Any], inputs: Inputs) -> None:
    """Raises UserError."""
    if any(step.get("secrets") for step in definition["steps"]):
        raise UserError(
            "secrets= of an image's build steps cannot be used here: each node makes the environment itself, and would "
            "need their values",
            "use secrets= in @app.function",
        )
    if inputs.reveal or inputs.secrets:
        raise UserError(
            "the package index of an image has a user or password in its address: each node makes the environment "
            "itself, and would need them",
            f"name the index in the uv configuration of each node (/etc/uv/uv.toml) and not in the image, or {DOCKER}",
        )


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry
