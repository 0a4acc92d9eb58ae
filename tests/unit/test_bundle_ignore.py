"""Ignore patterns as in a .dockerignore."""

from __future__ import annotations

import pytest

from modalnomad.deploy.ignore import IgnoreRules


@pytest.mark.parametrize(
    ("patterns", "ignored", "kept"),
    [
        (["*.txt"], ["a.txt"], ["sub/a.txt", "a.py"]),
        (["**/*.txt"], ["a.txt", "sub/a.txt", "x/y/a.txt"], ["a.py"]),
        (["data"], ["data", "data/a", "data/b/c"], ["data2", "sub/data"]),
        (["data/"], ["data/a"], ["data2"]),
        (["/data"], ["data/a"], ["sub/data"]),
        (["a/**/z"], ["a/z", "a/b/c/z"], ["a/zz"]),
        (["a/**"], ["a/b", "a/b/c"], ["b/a"]),
        (["?.py"], ["a.py"], ["ab.py"]),
        (["[ab].py"], ["a.py", "b.py"], ["c.py"]),
        (["[!ab].py"], ["c.py"], ["a.py"]),
        (["# a comment", "", "  x  "], ["x"], ["# a comment"]),
        (["**", "!**/*.py"], ["a.txt", "s/b.txt"], ["a.py", "s/b.py"]),
        (["*.md", "!README.md"], ["a.md"], ["README.md"]),
        (["!README.md", "*.md"], ["a.md", "README.md"], []),
        (["a\\*b"], ["a*b"], ["axb"]),
        (["."], [], ["a"]),
        (["*"], ["a", "a/b"], []),
        (
            [],
            ["__pycache__/a.py", "s/__pycache__/x", "a.pyc", ".git/config", ".venv/bin/python", ".DS_Store"],
            [".env"],
        ),
    ],
)
def test_patterns(patterns: list[str], ignored: list[str], kept: list[str]) -> None:
    rules = IgnoreRules(patterns)
    assert [path for path in ignored if not rules.ignored(path)] == []
    assert [path for path in kept if rules.ignored(path)] == []


def test_what_is_always_left_out_cannot_be_let_in_again() -> None:
    assert IgnoreRules(["!.git", "!**/*.pyc"]).ignored(".git/config")
    assert IgnoreRules(["!**/*.pyc"]).ignored("a.pyc")


def test_ignored_folders_are_not_looked_into_unless_something_below_may_be_let_in() -> None:
    assert IgnoreRules(["big"]).prunes
    assert not IgnoreRules(["big", "!big/one"]).prunes
