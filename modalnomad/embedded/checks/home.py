"""The home folder: is it usable, is there room, is what lies there whole?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modalnomad.kit.finding import Finding, in_units, ok, problem, warning

ELSEWHERE: Final = "or choose another folder with MODALNOMAD_HOME"
SPACE_LOW: Final = 2 * 1000**3
SPACE_GONE: Final = 200 * 1000**2
INODES_LOW: Final = 50_000
INODES_GONE: Final = 5_000
"""An image has some thousand files."""
SHOWN: Final = 5
FUTURE: Final = 300.0
"""Seconds a file may be from the future."""


@dataclass(frozen=True, slots=True)
class HomeFacts:
    """What the system says of the folder."""

    path: Path
    exists: bool
    folder: bool = True
    owner: int = 0
    """User id."""
    user: int = 0
    """Who asks."""
    mode: int = 0o700
    writable: bool = True
    """It, or where it does not exist yet, the folder it would be made in."""
    refusal: str = ""
    """Why its format cannot be used; empty: it can."""


def check_home(facts: HomeFacts) -> Finding:
    """May it be used?"""
    path = facts.path
    if not facts.exists:
        if facts.writable:
            return ok("home", f"{path} does not exist yet; the first deploy makes it")
        return problem("home", f"{path} cannot be made", f"make its parent folder writable, {ELSEWHERE}")
    if not facts.folder:
        return problem("home", f"{path} is no folder", f"move it away, {ELSEWHERE}")
    if facts.refusal:
        return problem("home", facts.refusal, f"use the modalnomad that wrote it, {ELSEWHERE}")
    if facts.owner != facts.user:
        return problem(
            "home",
            f"{path} belongs to user {facts.owner}, and this is user {facts.user}",
            f"run modalnomad as its owner, {ELSEWHERE}",
        )
    if not facts.writable:
        return problem("home", f"{path} cannot be written", f"make it writable, {ELSEWHERE}")
    if facts.mode & 0o077:
        return warning("home", f"{path} is open to other users (mode {facts.mode:o})", f"chmod 700 {path}")
    return ok("home", str(path))


def check_space(free: int, inodes: int | None) -> Finding:
    """Bytes and files that may still be written; None: the file system does not count files."""
    shown = f"{in_units(free)} free" + (f", room for {inodes} files" if inodes is not None else "")
    fix = "free some space: modalnomad prune, modalnomad image prune"
    if free < SPACE_GONE or (inodes is not None and inodes < INODES_GONE):
        return problem("disk", shown, fix)
    if free < SPACE_LOW or (inodes is not None and inodes < INODES_LOW):
        return warning("disk", f"{shown}: an image takes 50 MB to some GB", fix)
    return ok("disk", shown)


def check_sizes(sizes: Mapping[str, int], whole: bool) -> Finding:
    """Bytes by kind. `whole` False: there was more than could be counted in time."""
    shown = ", ".join(f"{kind} {in_units(size)}" for kind, size in sizes.items() if size) or "nothing"
    return ok("sizes", shown if whole else f"at least {shown}")


def check_records(damaged: Sequence[str], count: int) -> Finding:
    """Files that cannot be read, of so many."""
    if not damaged:
        return ok("records", "1 record is whole" if count == 1 else f"{count} records are whole")
    shown = "; ".join(damaged[:SHOWN])
    more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
    return problem("records", f"{shown}{more}", "restore the files from a copy, or remove them and deploy again")


def check_clock(now: float, newest: float) -> Finding:
    """`newest`: when the youngest record was written, Unix time."""
    if newest > now + FUTURE:
        return warning(
            "clock",
            f"the newest record was written {newest - now:.0f} seconds in the future: the clock was set back",
            "set the clock (timedatectl set-ntp true)",
        )
    return ok("clock", "no record is from the future")
