"""Sizes: what is too long to read at once is split by what it decides."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.repository import PLATFORM, ROOT, SDK, shown, sources, tree

FILE_LINES = 400
TEST_FILE_LINES = 600
BODY_LINES = 60
HANDLE_LINES = 40

Def = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: ast.Module, prefix: str = "") -> Iterator[tuple[str, Def]]:
    """Every function with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Def]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    return walk(module, prefix)


def body_lines(function: Def) -> int:
    """Lines from the first statement to the last; signature and docstring do not count."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_files(paths: Iterator[Path], limit: int) -> list[str]:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in paths}
    return [f"{shown(path)}: {length} lines, at most {limit}" for path, length in lengths.items() if length > limit]


def long_functions(paths: Iterator[Path], limit: int) -> list[str]:
    return [
        f"{shown(path)}:{function.lineno} {name}: {body_lines(function)} lines, at most {limit}"
        for path in paths
        for name, function in functions(tree(path))
        if body_lines(function) > limit
    ]


def test_files_are_short() -> None:
    assert not long_files(sources(PLATFORM, SDK, ROOT / "examples"), FILE_LINES)
    assert not long_files(sources(ROOT / "tests"), TEST_FILE_LINES)


def test_functions_are_short() -> None:
    assert not long_functions(sources(PLATFORM, SDK, ROOT / "tests", ROOT / "examples"), BODY_LINES)


def test_the_request_path_is_one_short_function() -> None:
    path = PLATFORM / "router" / "app.py"
    handle = dict(functions(tree(path)))["Router.handle"]

    assert body_lines(handle) <= HANDLE_LINES
    assert not long_files(iter([path]), 200)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f(\n  a,\n  b,\n):\n  '''Doc.\n\n  More.'''\n  x = 1\n  return x\n", 2),
        ("def f(): return 1\n", 1),
        ("class C:\n  async def f(self):\n    if 1:\n      pass\n\n    return 2\n", 4),
        ("def f():\n  '''Only this.'''\n", 0),
    ],
)
def test_body_lines_count_neither_signature_nor_docstring(source: str, lines: int) -> None:
    ((_, function),) = functions(ast.parse(source))

    assert body_lines(function) == lines
