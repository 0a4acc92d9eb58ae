"""How many files this process may have open: all it can get, and what it had for those it starts."""

from __future__ import annotations

import resource
from contextlib import suppress

_before: tuple[int, int] | None = None


def raise_limit() -> None:
    """As many as the system lets us have without asking: each connection is an open file, and the usual limit is there
    for programs that call select()."""
    global _before  # noqa: PLW0603 - the limit is the process's too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems name a hard limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _before = _before or (soft, hard)


def lower_limit_of(pid: int) -> None:
    """Give a process of ours that has just started the limit that we had ourselves. Nothing where that is unknown."""
    prlimit = getattr(resource, "prlimit", None)
    if _before is not None and prlimit is not None:
        with suppress(ProcessLookupError, PermissionError):
            prlimit(pid, resource.RLIMIT_NOFILE, _before)


def limit() -> int:
    """How many this process may have open now."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
