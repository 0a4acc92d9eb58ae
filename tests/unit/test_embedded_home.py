"""Which folder may be a home: a new one, or one of ours, of this format and this user's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from modalnomad.embedded import home as homes
from modalnomad.embedded.home import open_home
from modalnomad.embedded.keys import platform_key
from modalnomad.model.errors import BackendRefused


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_a_new_home_is_made_for_its_owner_and_marked(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    for _ in range(2):
        assert open_home(home) == home

    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert json.loads((home / "format").read_text()) == {"kind": "home", "version": 1, "content": {}}


def test_an_empty_folder_becomes_a_home_nobody_else_can_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "lost+found").mkdir()

    open_home(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_home_from_before_there_was_a_marker_is_marked(tmp_path: Path) -> None:
    platform_key(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")

    open_home(tmp_path)

    assert (tmp_path / "format").is_file()
    assert (tmp_path / "notes.txt").is_file()


def test_a_folder_full_of_other_things_is_refused_untouched(tmp_path: Path) -> None:
    for name in ("photos", "letters", "taxes", "images", "logs"):
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o755)

    with pytest.raises(BackendRefused, match=r"it holds letters, photos, taxes$") as refused:
        open_home(tmp_path)

    assert "MODALNOMAD_HOME" in (refused.value.hint or "")
    assert len(listing(tmp_path)) == 5
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_home_of_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    open_home(tmp_path)
    (tmp_path / "format").write_text('{"kind": "home", "version": 2, "content": {"new": 1}}')
    before = listing(tmp_path)

    with pytest.raises(BackendRefused, match=r"newer modalnomad \(format 2, this one knows 1\)") as refused:
        open_home(tmp_path)

    assert "use the newer modalnomad" in (refused.value.hint or "")
    assert listing(tmp_path) == before
    assert '"version": 2' in (tmp_path / "format").read_text()


def test_a_damaged_marker_is_told_with_a_way_out(tmp_path: Path) -> None:
    platform_key(tmp_path)
    (tmp_path / "format").write_text("")

    with pytest.raises(BackendRefused, match=r"format is damaged") as refused:
        open_home(tmp_path)

    assert "remove it" in (refused.value.hint or "")
    (tmp_path / "format").unlink()
    open_home(tmp_path)


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(BackendRefused, match="is not a folder"):
        open_home(tmp_path / "file")
    with pytest.raises(BackendRefused, match="file"):
        open_home(tmp_path / "file" / "home")


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")

    with pytest.raises(BackendRefused, match="a link to a folder that is not there"):
        open_home(tmp_path / "link")


def test_somebody_else_s_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_home(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 4242)

    with pytest.raises(BackendRefused, match=r"belongs to .*, and this is user") as refused:
        open_home(tmp_path)

    assert "sudo -u" in (refused.value.hint or "")


@pytest.mark.parametrize(("number", "says"), [(30, "read-only"), (13, "permission denied"), (28, "the disk is full")])
def test_a_new_home_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BackendRefused, match=says) as refused:
        open_home(tmp_path / "home")

    assert refused.value.hint


def test_a_home_on_a_read_only_disk_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_home(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("written")

    monkeypatch.setattr(homes, "write_record", refuse)
    assert open_home(tmp_path) == tmp_path
