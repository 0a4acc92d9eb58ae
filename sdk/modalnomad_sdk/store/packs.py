"""Packs: a definition and what building it needs in one file, for machines that were not there at the deploy.

An uncompressed tar file (what is in it is compressed already):

    definition.json       see definition.py
    archives/<SHA-256>    .tar.gz of each `files` step
    source.tar.gz         the program that `call` steps load; only where there is one
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import IO, Any

from modalnomad_sdk.store.definition import DIGEST
from modalnomad_sdk.store.errors import BuildFailed
from modalnomad_sdk.store.inputs import Inputs

DEFINITION, ARCHIVES, SOURCE = "definition.json", "archives/", "source.tar.gz"


def read_pack(pack: Path, folder: Path) -> tuple[dict[str, Any], Inputs]:
    """Definition and inputs; their files are unpacked into `folder`. Raises BuildFailed, OSError."""
    archives: dict[str, Path] = {}
    source = None
    definition: Any = None
    try:
        with tarfile.open(pack, "r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None:
                    continue
                if member.name == DEFINITION:
                    definition = json.loads(content.read())
                elif member.name == SOURCE:
                    source = _copy(content, folder / SOURCE)
                elif member.name.startswith(ARCHIVES) and DIGEST.fullmatch(digest := member.name[len(ARCHIVES) :]):
                    archives[digest] = _copy(content, folder / f"{digest}.tar.gz")
    except (tarfile.TarError, ValueError) as error:
        raise BuildFailed(f"the pack of the image cannot be read: {error}") from error
    if not isinstance(definition, dict):
        raise BuildFailed("the pack of the image has no definition")
    return definition, Inputs(archives=archives, source=source)


def _copy(content: IO[bytes], target: Path) -> Path:
    with target.open("xb") as out:
        shutil.copyfileobj(content, out)
    return target
