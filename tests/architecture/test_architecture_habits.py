"""Habits a reader may rely on: one place starts tasks, one place prints, package files are signposts."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.support.repository import PLATFORM, ROOT, SDK, shown, sources, tree

STARTS_TASKS = {"create_task", "ensure_future", "run_coroutine_threadsafe"}
SPEAKING_PACKAGES = {
    "modalnomad/__init__.py": "a signpost for whoever imports the SDK's names from here",
    "sdk/modalnomad_sdk/__init__.py": "the SDK's public names",
    "sdk/modalnomad_sdk/store/__init__.py": "the store's public name",
}
"""Package files that hold more than a docstring, and why."""


def calls(path: Path, names: Iterable[str]) -> list[str]:
    """Where a file calls something with one of these names, as a function or as a method."""
    wanted = set(names)
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in wanted:
                found.append(f"{shown(path)}:{node.lineno} {name}")
    return found


def test_only_tasks_starts_tasks() -> None:
    home = PLATFORM / "kit" / "tasks.py"
    assert calls(home, STARTS_TASKS), "the search finds what it looks for"

    assert not [found for path in sources(PLATFORM) if path != home for found in calls(path, STARTS_TASKS)]


def test_only_the_command_line_and_the_runner_print() -> None:
    speaking = (PLATFORM / "cli", SDK / "runner", SDK / "describe.py")  # describe is a child process of its own
    silent = [p for p in sources(PLATFORM, SDK) if not any(allowed in (p, *p.parents) for allowed in speaking)]

    assert not [found for path in silent for found in calls(path, ["print"])]


def test_only_the_command_line_and_entry_points_exit() -> None:
    allowed = (PLATFORM / "cli", SDK / "runner", PLATFORM / "__main__.py", SDK / "describe.py", SDK / "entry.py")
    silent = [p for p in sources(PLATFORM, SDK) if not any(a in (p, *p.parents) for a in allowed)]
    ends = [
        f"{shown(path)}:{node.lineno}"
        for path in silent
        for statement in tree(path).body
        if not (isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test))
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.exit", "os._exit"}
    ]

    assert not ends


def test_nobody_calls_select_which_takes_no_descriptor_above_1023() -> None:
    """A router holds thousands, and what it starts inherits such numbers. poll() has no such limit."""
    assert calls(SDK / "runner" / "processes.py", ["poll"]), "the search finds what it looks for"

    assert not [found for path in sources(PLATFORM, SDK) for found in calls(path, ["select"])]


def test_nobody_gives_the_file_of_a_pipe_to_the_event_loop() -> None:
    """uvloop closes its number twice, in between it may be another thread's: `kit/pipe_end.py` is for that."""
    assert calls(PLATFORM / "kit" / "pipe_end.py", ["add_reader"]), "the search finds what it looks for"

    makers = ["connect_read_pipe", "connect_write_pipe"]
    assert not [found for path in sources(PLATFORM, SDK) for found in calls(path, makers)]


def test_package_files_say_what_belongs_there_and_nothing_else() -> None:
    wrong = []
    for path in sources(PLATFORM, SDK):
        if path.name != "__init__.py":
            continue
        module = tree(path)
        if not ast.get_docstring(module):
            wrong.append(f"{shown(path)}: no docstring")
        if len(module.body) > 1 and shown(path) not in SPEAKING_PACKAGES:
            wrong.append(f"{shown(path)}: more than a docstring")

    assert not wrong


def test_every_module_says_what_it_is_for() -> None:
    folders = (PLATFORM, SDK, ROOT / "tests", ROOT / "examples")

    assert not [shown(path) for path in sources(*folders) if path.stat().st_size and not ast.get_docstring(tree(path))]


def test_no_test_files_share_a_name() -> None:
    names = Counter(path.name for path in sources(ROOT / "tests") if path.name.startswith("test_"))

    assert not [name for name, count in names.items() if count > 1]
