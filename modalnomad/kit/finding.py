"""One thing `doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was looked at. A warning is a limitation to know of; a problem keeps something from working.
    `fix` says what to do."""

    check: str
    level: Level
    message: str
    fix: str = ""


def ok(check: str, message: str) -> Finding:
    """As it should be."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, fix: str) -> Finding:
    """It works, with a limitation."""
    return Finding(check, "warning", message, fix)


def problem(check: str, message: str, fix: str) -> Finding:
    """Something does not work."""
    return Finding(check, "problem", message, fix)


def in_units(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
