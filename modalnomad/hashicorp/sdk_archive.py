"""The zip application that starts replicas on nodes: the SDK's own sources, always the same bytes for the same sources.

python modalnomad.pyz launch     in a task of Nomad: what a replica needs on the node, then the replica
python modalnomad.pyz            the replica itself, as `modalnomad_sdk/runner/__main__.py`
"""

from __future__ import annotations

import asyncio
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from modalnomad_sdk import contract

from modalnomad.model.ids import Digest
from modalnomad.ports.artifacts import Artifacts

PACKAGE: Final = Path(contract.__file__).parent
ENTRY: Final = PACKAGE / "node" / "__main__.py"
"""Also the archive's own."""
EARLIEST: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time zip files know."""


async def sdk_archive(artifacts: Artifacts) -> Digest:
    """Put it among the artifacts. Raises BackendError."""
    with tempfile.TemporaryDirectory(prefix="modalnomad-sdk-") as folder:
        archive = Path(folder) / "modalnomad.pyz"
        await asyncio.to_thread(write_sdk_archive, archive)
        return await artifacts.put(archive)


def write_sdk_archive(target: Path) -> None:
    """Raises OSError."""
    # Nothing is compressed: the bytes must not depend on the zlib at hand, and it is read at each start of a replica.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sdk_files().items():
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)


def sdk_files() -> dict[str, bytes]:
    """What it holds, in order; in a container they lie in a folder. Raises OSError."""
    sources = sorted(path for path in PACKAGE.rglob("*.py") if path.is_file())
    named = {f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}": path for path in sources}
    return {name: path.read_bytes() for name, path in {"__main__.py": ENTRY, **named}.items()}
