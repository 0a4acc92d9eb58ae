"""Origin: who deploys, with what, from which commit. Nothing here ever fails a deploy."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import platform
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modalnomad import __version__
from modalnomad.model.manifest import Source

logger = logging.getLogger("modalnomad.deploy")

GIT_TIMEOUT: Final = 5.0
"""Seconds git may take, on a large repository that nothing of is cached; then the commit stays unknown."""
GIT_STEERING: Final = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"})
"""Set in hooks of another repository than the program's."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What `AppVersion` keeps of it, under the same names."""

    deployed_by: str = ""
    client: str = ""
    commit: str = ""
    dirty: bool = False


async def origin(source: Source | None = None) -> Origin:
    """Of this process; with `source` also the commit of the program's repository."""
    commit, dirty = ("", False) if source is None else await commit_of(Path(source.root), entry_file(source))
    return Origin(deployer(), __version__, commit, dirty)


def deployer() -> str:
    """`user@host`."""
    return f"{user()}@{platform.node() or 'localhost'}"


def user() -> str:
    """Login name, else the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def entry_file(source: Source) -> str:
    """The program's own file or package, relative to `source.root`."""
    return source.entry if source.mode == "script" else source.entry.split(".", 1)[0]


async def commit_of(folder: Path, program: str) -> tuple[str, bool]:
    """The commit, and whether tracked files differ from it or `program` is not tracked at all. No git, no repository,
    no commit yet: ("", False)."""
    try:
        async with asyncio.timeout(GIT_TIMEOUT):
            status = await _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
            head, dirty = read_status(status)
            if head and not dirty:
                dirty = not await _git(folder, "ls-files", "--", program)
            return head, dirty
    except (OSError, TimeoutError) as error:
        logger.debug("no commit of %s: %s", folder, error or "git took too long")
        return "", False


def read_status(text: str) -> tuple[str, bool]:
    """From `git status --porcelain=v2 --branch`: the commit (empty: none) and whether anything is changed."""
    head, dirty = "", False
    for line in text.splitlines():
        if line.startswith("# branch.oid "):
            head = line.rpartition(" ")[2]
        elif line and not line.startswith("#"):
            dirty = True
    return (head, dirty) if head and head != "(initial)" else ("", False)


async def _git(folder: Path, *arguments: str) -> str:
    """Its output; empty when it says no. Raises OSError without git."""
    # Reading must neither wait for nor leave a lock in the user's repository, nor run a monitor it names.
    process = await asyncio.create_subprocess_exec(
        *("git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**without(os.environ, GIT_STEERING), "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
    )
    try:
        output, _ = await process.communicate()
    finally:
        await _end(process)
    return output.decode("utf-8", "replace") if process.returncode == 0 else ""


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def without(environment: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    """All but these."""
    return {name: value for name, value in environment.items() if name not in names}
