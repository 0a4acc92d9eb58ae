"""The home itself: is this folder one of ours, and may this modalnomad and this user work in it?"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final

from modalnomad.embedded.store import FOLDER_MODE, make_folder, read_record, translated, write_record
from modalnomad.model.errors import BackendRefused

FORMAT: Final = 1
"""Of the home as a whole: which folders there are and what they mean. Each record has a format of its own besides."""
KIND: Final = "home"
MARKER: Final = "format"
OURS: Final = frozenset({"artifacts", "discovery", "platform.key", "secrets"})
"""At least one of these is in every home that was used before there was a marker."""
KNOWN: Final = OURS | {
    *("bundles", "bundles.lock", "control", "gpus", "images", "locks", "logs", "ports.json", "run", "run.lock"),
    *("schedules.json", "scratch", "scratch.lock"),
}
SYSTEMS: Final = frozenset({"lost+found", "System Volume Information"})
"""What file systems put into their top folder."""
SHOWN: Final = 3
ELSEWHERE: Final = "choose another folder with MODALNOMAD_HOME"


def open_home(home: Path) -> Path:
    """Check the home and, when it is new, mark it with its format. Every command that uses one calls this first.

    Raises BackendRefused, having changed nothing, for: a newer format, a folder full of other things, a file, somebody
    else's folder, one that cannot be read, a new one that cannot be written.
    """
    with translated(f"use {home} as modalnomad's home"):
        owner = _owner(home)
        _refuse_others(home, owner)
        if owner is not None and read_record(home / MARKER, KIND, FORMAT) is not None:
            return home
        if owner is not None:
            _refuse_foreign(home)
        make_folder(home)
        home.chmod(FOLDER_MODE)
    write_record(home / MARKER, KIND, FORMAT, {})
    return home


def _owner(home: Path) -> int | None:
    """None: there is no such folder yet."""
    try:
        return home.stat().st_uid
    except FileNotFoundError:
        if home.is_symlink():
            raise BackendRefused(
                f"{home} is a link to a folder that is not there", f"make it, or {ELSEWHERE}"
            ) from None
        return None


def _refuse_others(home: Path, owner: int | None) -> None:
    if owner is not None and not home.is_dir():
        raise BackendRefused(f"{home} is to be modalnomad's home, and is not a folder", ELSEWHERE)
    if owner is not None and owner != os.geteuid():
        raise BackendRefused(
            f"{home} belongs to {_user(owner)}, and this is {_user(os.geteuid())}: files of two users in one "
            "home would lock one of them out",
            f"run it as that user (sudo -u {_user(owner)} modalnomad …), or {ELSEWHERE}",
        )


def _refuse_foreign(home: Path) -> None:
    """Nothing of ours and something of somebody else's: not a home."""
    names = set(os.listdir(home))
    foreign = sorted(name for name in names - KNOWN - SYSTEMS if not name.startswith("."))
    if foreign and not names & OURS:
        shown = ", ".join(foreign[:SHOWN]) + (f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else "")
        raise BackendRefused(
            f"{home} is not a home of modalnomad: it holds {shown}", "choose a new or empty folder with MODALNOMAD_HOME"
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
