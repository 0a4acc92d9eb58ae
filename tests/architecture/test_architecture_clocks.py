"""A wall clock may jump: what waits, expires or decides looks at the monotonic one."""

from __future__ import annotations

import ast

from tests.support.repository import PLATFORM, SDK, shown, sources, tree

WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
SHOWN_ONLY = {"debug.py", "observer.py", "feed.py", "problem.py", "exposition.py", "access_log.py"}
"""Of the router: they show it to people, in a header, a log or a metric."""


def looks(*folders: str) -> list[str]:
    """Files that look at the wall clock."""
    found = []
    for path in sources(*((SDK if folder == "runner" else PLATFORM) / folder for folder in folders)):
        names = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        if names & WALL:
            found.append(shown(path))
    return found


def test_the_data_plane_decides_nothing_by_the_wall_clock() -> None:
    looking = looks("router", "scaling", "kit")

    assert looking, "the search finds what it looks for"
    assert {path.rpartition("/")[2] for path in looking} <= SHOWN_ONLY


def test_replicas_keep_their_deadlines_by_the_monotonic_clock() -> None:
    assert not looks("runner")
