"""The text of a program that Nomad's pages show beside its jobs."""

from __future__ import annotations

import asyncio
import re
import tarfile
from pathlib import Path
from typing import Final

from modalnomad.deploy.scratch import scratch_folder
from modalnomad.model.errors import NotFound
from modalnomad.model.revision import Revision
from modalnomad.ports.artifacts import Artifacts

VALUES: Final = re.compile(r"\bfrom_dict\b|\benv\s*=")
"""Where values may be written in a program."""
LARGEST: Final = 200_000
"""Bytes of a text that is shown: Nomad takes a megabyte."""


async def no_text(revision: Revision) -> str:
    """For whom registers nothing."""
    return ""


async def program_text(artifacts: Artifacts, revision: Revision) -> str:
    """The file the program is in, as it was deployed; empty: it is a package, it is long, or values may be written in
    it, which whoever may read jobs would read. Raises BackendError."""
    if revision.source.mode != "script":
        return ""
    with scratch_folder("modalnomad-text-") as folder:
        bundle = folder / "bundle"
        try:
            await artifacts.get(revision.bundle, bundle)
        except NotFound:
            return ""
        text = await asyncio.to_thread(_text, bundle, revision.source.entry)
    return "" if VALUES.search(text) else text


def _text(bundle: Path, name: str) -> str:
    try:
        with tarfile.open(bundle) as tar:
            entry = tar.getmember(name)
            file = tar.extractfile(entry) if entry.size <= LARGEST else None
            return file.read().decode("utf-8") if file is not None else ""
    except (tarfile.TarError, KeyError, UnicodeDecodeError):
        return ""
