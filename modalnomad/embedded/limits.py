"""What a replica may take at most: control groups (cgroups) of the system, one set for each replica.

No other means does it. RLIMIT_AS counts addresses, of which a program with threads or a GPU reserves many times what it
uses; RLIMIT_NPROC counts all processes of a user and means nothing to root; and both bound each process by itself,
not all of a replica together. Where no control group can be made there is no limit, and that is said.

A group is made before its replica, which enters it before the user's code runs (`runner/cgroups.py`). Its name holds
the run's, so that whoever clears the run away finds it (`janitor.groups_of`).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from modalnomad.embedded import janitor
from modalnomad.embedded.cgroups import (
    MIB,
    Controller,
    Kind,
    bases_of,
    out_of_memory,
    refusals,
    settle,
    texts_of,
    write_text,
)
from modalnomad.model.manifest import Resources

logger = logging.getLogger("modalnomad.engine")

CONTROLLERS: Final[tuple[Controller, ...]] = get_args(Controller)
PROBE_LIMIT: Final = 5.0
"""Seconds a process may take to enter a group."""
END_LIMIT: Final = 2.0
"""Seconds what is left in a replica's group may take to die; then the group is left to the end of the run."""
_ENTER: Final = 'echo 0 > "$1"'


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """What this system lets us limit."""

    bases: Mapping[Controller, str]
    """Folders that groups are made in, by what can be limited there."""
    kind: Kind = "none"
    why: str = ""
    """Why something cannot be limited; empty: all can."""

    @property
    def missing(self) -> dict[str, str]:
        """What cannot be limited → why."""
        return {name: self.why for name in CONTROLLERS if name not in self.bases}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one replica; None: no limit."""

    memory: int | None = None
    """Bytes."""
    processes: int | None = None
    """Processes and threads."""
    cpu: float | None = None
    """Cores."""

    @classmethod
    def of(cls, resources: Resources, max_processes: int) -> Bounds:
        """`max_processes` 0: any number. What the program asks for without a limit bounds nothing."""
        memory = resources.memory[1] if resources.memory else None
        cpu = resources.cpu[1] if resources.cpu else None
        return cls(memory * MIB if memory else None, max_processes or None, cpu or None)

    @property
    def controllers(self) -> frozenset[Controller]:
        """What it takes to hold them."""
        found: dict[Controller, object] = {"memory": self.memory, "pids": self.processes, "cpu": self.cpu}
        return frozenset(name for name, value in found.items() if value is not None)


@dataclass(slots=True)
class Group:
    """One replica's control groups. Nothing of it is for the event loop but the properties."""

    kind: Kind
    paths: Mapping[Controller, str]
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def folders(self) -> tuple[str, ...]:
        """Those to enter; in the second version of control groups all are one."""
        return tuple(dict.fromkeys(self.paths.values()))

    def bind(self, bounds: Bounds) -> None:
        """Set these limits, and lift those that are not among them. Raises OSError."""
        self.bounds = bounds
        for controller, path in self.paths.items():
            value = {"memory": bounds.memory, "pids": bounds.processes, "cpu": bounds.cpu}[controller]
            for name, text, needed in texts_of(self.kind, controller, value):
                try:
                    write_text(f"{path}/{name}", text)
                except OSError:
                    if needed:
                        raise

    def troubles(self) -> tuple[str | None, str | None]:
        """In words: that something in it was killed for want of memory; that it got no more processes."""
        memory, processes = self.bounds.memory, self.bounds.processes
        killed = refused = None
        if memory is not None and "memory" in self.paths and out_of_memory(self.kind, self.paths["memory"]):
            killed = f"out of memory (limit {memory / MIB:g} MiB)"
        if processes is not None and "pids" in self.paths and (count := refusals(self.paths["pids"])):
            refused = (
                f"{count} times it was refused another process or thread: it may have {processes} at once "
                "(embedded.max_processes)"
            )
        return killed, refused

    def end(self) -> bool:
        """Kill what is left in it and remove it. False: not all could be; it goes with the run."""
        ended = [janitor.end_group(folder, END_LIMIT) for folder in self.folders]
        return all(ended)


class Limits:
    """Makes the groups of one engine's replicas. Not for the event loop."""

    def __init__(self, setting: Literal["auto", "off"], max_processes: int) -> None:
        self.max_processes = max_processes
        self.facts = LimitFacts({}, why="the settings say so (embedded.limits)")
        """What is possible, once somebody has looked."""
        self._looked = setting == "off"
        self._looking = threading.Lock()
        self._run = ""
        self._said = False

    def open(self, run: Path) -> None:
        """Look what is possible, and note in the run's folder where its groups will be. Raises OSError."""
        self._run = run.name
        self.look()
        # Before the first of them is made: what nobody knows of would stay.
        bases = dict.fromkeys(self.facts.bases.values())
        (run / janitor.GROUPS).write_text("".join(f"{base}\n" for base in bases), "utf-8")

    def look(self) -> LimitFacts:
        """What is possible here, tried once."""
        with self._looking:
            if not self._looked:
                self.facts, self._looked = available(), True
            return self.facts

    def make(self, name: str, bounds: Bounds | None = None) -> Group | None:
        """A group for a replica; `name` is used once in the run. Without `bounds`: one that can hold all there are.

        None: none is needed or possible. It never fails a start: what does not work here is said once.
        """
        wanted = self.facts.bases.keys() if bounds is None else self.facts.bases.keys() & bounds.controllers
        paths = {each: f"{self.facts.bases[each]}/{janitor.GROUP_PREFIX}{self._run}-{name}" for each in wanted}
        if not paths:
            return None
        group = Group(self.facts.kind, paths)
        try:
            for folder in group.folders:
                make_group(folder)
            group.bind(bounds or Bounds())
        except OSError as error:
            self.complain(error)
            group.end()
            return None
        return group

    def bind(self, group: Group, bounds: Bounds) -> None:
        """Give a group that was made before its replica was known that one's limits. Never fails a start either."""
        try:
            group.bind(bounds)
        except OSError as error:
            self.complain(error)

    def complain(self, error: OSError) -> None:
        """A limit could not be set."""
        if not self._said:
            self._said = True
            logger.warning("replicas run without limits of memory and processes: %s", error)


def available(*, settled: bool = True) -> LimitFacts:
    """What can be limited here, tried out: takes a few hundredths of a second, not for the event loop. Leaves none.
    `settled` False: our own processes stay where they are, see `cgroups.settle`."""
    kind, candidates, why = _candidates(settled)
    name = f"{janitor.GROUP_PREFIX}probe-{os.getpid()}"
    bases: dict[Controller, str] = {}
    reasons: list[str] = []
    for base in dict.fromkeys(base for folders in candidates.values() for base in folders):
        found: dict[Controller, str] = {}
        for controller in CONTROLLERS:
            if base not in candidates.get(controller, ()) or (kind == "separate" and controller in bases):
                continue
            if (reason := _try(kind, controller, f"{base}/{name}")) is None:
                found[controller] = base
            else:
                reasons.append(f"{base}: {reason}")
        # In the unified tree one folder has to do for all.
        bases = bases | found if kind == "separate" else max(bases, found, key=len)
        if len(bases) == len(CONTROLLERS):
            return LimitFacts(bases, kind)
    return LimitFacts(bases, kind, why or (reasons[0] if reasons else "this system has no control group for it"))


def _candidates(settled: bool) -> tuple[Kind, dict[Controller, list[str]], str]:
    if sys.platform != "linux":
        return "none", {}, "only Linux has control groups"
    try:
        mounts, own = (Path(f"/proc/self/{name}").read_text("utf-8", "replace") for name in ("mountinfo", "cgroup"))
    except OSError as error:
        return "none", {}, f"/proc cannot be read: {error.strerror}"
    kind, candidates = bases_of(mounts, own)
    if kind == "unified" and settled:
        settle(candidates["memory"][0])
    return kind, candidates, "" if candidates else "this system has mounted no control groups"


def _try(kind: Kind, controller: Controller, group: str) -> str | None:
    """Make a group, bound it, enter it, remove it. Why that fails; None: it works."""
    made = Group(kind, {controller: group})
    try:
        make_group(group)
        made.bind(Bounds(memory=1 << 30, processes=100, cpu=1.0))
        entered = _enters(group)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            made.end()
    return None if entered else "a process cannot enter a control group there"


def _enters(group: str) -> bool:
    nothing = subprocess.DEVNULL
    command = ["/bin/sh", "-c", _ENTER, "sh", f"{group}/cgroup.procs"]
    try:
        done = subprocess.run(
            command, stdin=nothing, stdout=nothing, stderr=nothing, env={}, timeout=PROBE_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def make_group(folder: str) -> None:
    """One group. Raises OSError."""
    os.mkdir(folder, 0o755)
