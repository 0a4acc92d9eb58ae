"""Which local files are left out: patterns as in a .dockerignore."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    out = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            out.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            out.append(".*")
            at += 2
        elif char == "*":
            out.append("[^/]*")
            at += 1
        elif char == "?":
            out.append("[^/]")
            at += 1
        elif char == "[" and (end := pattern.find("]", at + 2)) > 0:
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            out.append("[" + ("^" + inner[1:] if inner[0] in "!^" else inner) + "]")
            at = end + 1
        elif char == "\\" and at + 1 < len(pattern):
            out.append(re.escape(pattern[at + 1]))
            at += 2
        else:
            out.append(re.escape(char))
            at += 1
    # A folder that matches takes everything below it along.
    return re.compile("".join(out) + r"(?:/.*)?\Z", re.DOTALL)


def _clean(pattern: str) -> tuple[bool, str]:
    text = pattern.strip()
    negated = text.startswith("!")
    if negated:
        text = text[1:].strip()
    if not text or text.startswith("#"):
        return negated, ""
    return negated, os.path.normpath(text).replace(os.sep, "/").lstrip("/")


def ignored(path: str, patterns: Sequence[str]) -> bool:
    """Is `path` (relative, with slashes) left out? The last pattern that matches decides; `!` takes a file back in."""
    result = False
    for pattern in patterns:
        negated, text = _clean(pattern)
        if text and text != "." and _compiled(text).match(path):
            result = not negated
    return result


class FilePatternMatcher:
    """Matches paths against patterns as in a .dockerignore; `~matcher` matches what it does not."""

    patterns: tuple[str, ...] = ()

    def __init__(self, *pattern: str) -> None:
        self.patterns = tuple(pattern)
        self.negated = False

    @classmethod
    def from_file(cls, file_path: str | Path) -> FilePatternMatcher:
        """Patterns of a file, one a line."""
        return cls(*Path(file_path).read_text(encoding="utf-8").splitlines())

    def can_prune_directories(self) -> bool:
        """May a folder that matches be skipped without looking into it?"""
        return not self.negated and not any(pattern.strip().startswith("!") for pattern in self.patterns)

    def __call__(self, file_path: Path) -> bool:
        return ignored(Path(file_path).as_posix().lstrip("/"), self.patterns) != self.negated

    def __invert__(self) -> FilePatternMatcher:
        other = type(self)(*self.patterns)
        other.negated = not self.negated
        return other

    def __repr__(self) -> str:
        return f"{'~' if self.negated else ''}FilePatternMatcher{self.patterns!r}"


NON_PYTHON_FILES = ~FilePatternMatcher("**/*.py")

Ignore = Sequence[str] | Callable[[Path], bool]
