"""What a row of the table of misuse says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Misuse:
    """One wrong program."""

    name: str
    program: str
    error: str
    """Name of the exception's class, or of one of its bases."""
    words: tuple[str, ...]
    """Parts of the message: what was found, what to write instead."""
    marked: str = ""
    """Part of the line that the message must point to; empty: the last line with a decorator."""
    vendor: str | None = None
    """Where the vendor's package does something else without an account: the class it raises, or "" for nothing (it is
    found out by its servers)."""
