"""A leak counter: what a running `serve` or `up` holds, before and after.

    with no_leaks(u):
        ...                    # start replicas, kill them, cut connections

At the end it waits, within a limit, until nothing is there that was not there at the beginning, and else fails with the
difference in words. Replicas count too: the block has to end with none, or with as many as it began with.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from modalnomad.embedded.janitor import groups_of
from tests.support.leftovers import mentioning, sockets_below
from tests.support.serve import Serve

LONG = 30.0
"""Seconds after which what is still there has leaked."""
_TCP_LISTEN = "0A"


def census(s: Serve, folders: Sequence[Path] = ()) -> Counter[str]:
    """What it holds now, in words: how often. `folders`: where temporary files would be."""
    found: Counter[str] = Counter()
    found.update(router(s))  # first: asking opens a connection
    known = _sockets()
    found.update(_descriptors(s.pid, known))
    for process in {*psutil.Process(s.pid).children(recursive=True), *mentioning(str(s.home / "run"))}:
        if process.pid != s.pid:
            found[_process(process)] += 1
    run = s.home / "run"
    found.update(f"Unix socket {_plain(name)}" for name in sockets_below(run))
    for folder in (run, *folders):
        # Not rglob: a folder may go while it is looked at.
        for parent, folders_in, files in os.walk(folder):
            found.update(f"file {_plain(os.path.join(parent, name))}" for name in (*folders_in, *files))
    for each in run.glob("*"):
        found.update(f"control group {_plain(group)}" for group in groups_of(str(each)))
    return +found


def router(s: Serve) -> Counter[str]:
    """Leases, waiters, places, connections and tasks of the router, where there is an admin listener."""
    found: Counter[str] = Counter()
    address = next((event.get("admin_url") for event in s.events if event["event"] == "ready"), None)
    if not address:
        return found
    debug, tasks = _ask(address, "/debug"), _ask(address, "/debug/tasks")
    for pool in debug["pools"]:
        found["waiter"] += pool["waiting"]
        found["lease"] += pool["running"]
        for replica in pool["replicas"]:
            found[f"place of a replica that is {replica['state']}"] += 1
    for kind in ("in_flight", "connections", "websockets"):
        found[f"{kind} of the router"] += debug["requests"][kind]
    for task in tasks["tasks"]:
        if task["name"] and not task["name"].startswith("Task-"):  # those of libraries
            found[f"task {_plain(task['name'])}"] += task["count"]
    return found


def _ask(address: str, path: str) -> Any:
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=LONG)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _sockets() -> dict[str, str]:
    """Inode → what it is."""
    found: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            found[fields[9]] = "listening TCP socket" if fields[3] == _TCP_LISTEN else "TCP connection"
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        found[fields[6]] = f"Unix socket {_plain(fields[7])}" if len(fields) > 7 else "Unix socket without a name"
    return found


def _descriptors(pid: int, known: dict[str, str]) -> Iterator[str]:
    for entry in list(os.scandir(f"/proc/{pid}/fd")):
        with suppress(FileNotFoundError):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                target = known.get(target[8:-1], "socket of another kind")
            yield f"open: {_plain(target.partition(':[')[0])}"


def _process(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return f"process {_plain(' '.join(process.cmdline()) or process.name())[:160]}"
        return f"zombie {process.name()}"
    return ""


def _plain(text: str) -> str:
    """Without what changes from one replica to the next."""
    return re.sub(r"\d+|[0-9a-f]{8,}", "…", text)


@contextmanager
def no_leaks(s: Serve, *folders: Path, limit: float = LONG) -> Iterator[None]:
    """The block leaves nothing."""
    before = settled(s, folders)
    yield
    deadline = time.monotonic() + limit
    while more := census(s, folders) - before - Counter({"": 100}):
        if time.monotonic() > deadline:
            words = "\n".join(f"{count} × {what}" for what, count in sorted(more.items()))
            raise AssertionError(f"{limit:g} s later there is more than before:\n{words}\n{s.output()}")
        time.sleep(0.05)


def settled(s: Serve, folders: Sequence[Path] = ()) -> Counter[str]:
    """What it holds when nothing moves any more: the same twice, and no replica."""
    deadline = time.monotonic() + LONG
    last: Counter[str] = Counter()
    while (now := census(s, folders)) != last or any(what.startswith(("place", "lease")) for what in now):
        assert time.monotonic() < deadline, f"it does not come to rest: {now}"
        last = now
        time.sleep(0.3)
    return now
