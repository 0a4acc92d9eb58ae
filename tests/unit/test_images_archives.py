"""Unpacking never writes outside the target."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from modalnomad_sdk.store.archives import UnsafeArchive, unpack


def archive(*members: tuple[str, bytes, int]) -> tarfile.TarFile:
    """Members as (name, type, mode); files hold their own name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, mode in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.linkname = kind, mode, "/etc/passwd"
            content = name.encode() if kind == tarfile.REGTYPE else b""
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def test_files_and_folders(tmp_path: Path) -> None:
    with archive(
        ("pkg", tarfile.DIRTYPE, 0o777), ("pkg/a.py", tarfile.REGTYPE, 0o4666), ("x/run.sh", tarfile.REGTYPE, 0o755)
    ) as tar:
        unpack(tar, tmp_path)
    assert (tmp_path / "pkg/a.py").read_text() == "pkg/a.py"
    assert (tmp_path / "pkg/a.py").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "x/run.sh").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out", tarfile.REGTYPE),
        ("a/../../out", tarfile.REGTYPE),
        ("/out", tarfile.REGTYPE),
        ("..\\out", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_what_would_land_elsewhere_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with archive((name, kind, 0o644)) as tar, pytest.raises(UnsafeArchive, match=r"would land|neither"):
        unpack(tar, target)
    assert list(target.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]
