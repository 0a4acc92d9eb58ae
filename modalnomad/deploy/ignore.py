"""Ignore patterns with the semantics of a .dockerignore file. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePosixPath

ALWAYS = frozenset({"__pycache__", ".git", ".venv", ".DS_Store"})
"""Names of files and folders that never join a bundle, wherever they are."""


class IgnoreRules:
    """Ordered patterns: the last one that matches a path, or a folder above it, decides; `!` lets in again.

    Patterns are rooted at the folder being added: `*.txt` means its own files, `**/*.txt` those of every folder."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in patterns:
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            keep = pattern.startswith("!")
            pattern = str(PurePosixPath(pattern.removeprefix("!").strip().lstrip("/") or "."))
            if pattern != ".":
                self._rules.append((_compiled(pattern), keep))

    @property
    def prunes(self) -> bool:
        """Whether an ignored folder need not be looked into: nothing below can be let in again."""
        return not any(keep for _, keep in self._rules)

    def ignored(self, path: str) -> bool:
        """`path` is relative to the folder being added, with `/`."""
        parts = path.split("/")
        if path.endswith(".pyc") or not ALWAYS.isdisjoint(parts):
            return True
        verdict = False
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        for pattern, keep in self._rules:
            if verdict == keep and any(pattern.fullmatch(candidate) for candidate in above):
                verdict = not keep
        return verdict


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    """`**` crosses folders, `*` and `?` do not, `[…]` is a set, a backslash takes the next character as it is."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            out.append("(?:[^/]+/)*")
            at += 3
            continue
        if pattern.startswith("**", at):
            out.append(".*")
            at += 2
            continue
        end = pattern.find("]", at + 2)
        if char == "[" and end > 0:
            body = pattern[at + 1 : end].replace("\\", "\\\\")
            body = "^" + body[1:] if body[0] in "^!" else body
            out.append(f"(?!/)[{body}]")
            at = end + 1
            continue
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            out.append(re.escape(pattern[at]))
        else:
            out.append({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)))
        at += 1
    return re.compile("".join(out), re.DOTALL)
