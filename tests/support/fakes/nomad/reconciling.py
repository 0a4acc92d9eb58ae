"""What a job's allocations should be and are not: decided from the tables, nothing is changed here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.support.fakes.nomad.shapes import UPDATES
from tests.support.fakes.nomad.state import TERMINAL, JobKey, Shape, State

NOT_NEEDED: Final = "alloc not needed due to job update"
MIGRATED: Final = "alloc is being migrated"
UPDATED: Final = "alloc is being updated due to job update"
LOST: Final = "alloc is lost since its node is down"
WHOLE: Final = frozenset({"sysbatch", "system"})
"""Job types with one allocation on each node."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An allocation to be placed. `node`: only there."""

    number: int
    node: str | None = None
    previous: str | None = None


@dataclass
class Changes:
    """Of one group."""

    group: Shape
    stop: list[tuple[Shape, str, bool]] = field(default_factory=list)
    """Allocation, why, whether it is lost."""
    update: list[Shape] = field(default_factory=list)
    """They run on, under the job as it is now."""
    place: list[Wanted] = field(default_factory=list)
    counts: Shape = field(default_factory=lambda: dict.fromkeys(UPDATES, 0))


def reconcile(state: State, key: JobKey) -> tuple[Shape | None, list[Changes]]:
    """The job, None: purged, and what there is to do in each of its groups."""
    job, allocations = state.jobs.get(key), state.allocations_of(key)
    shown = job or (allocations[-1]["Job"] if allocations else None)
    if shown is None:
        return None, []
    found = []
    for group in shown["TaskGroups"]:
        changes = Changes(group)
        own = [alloc for alloc in allocations if alloc["TaskGroup"] == group["Name"]]
        if job is None or job["Stop"]:
            for alloc in own:
                if alloc["DesiredStatus"] == "run" and alloc["ClientStatus"] not in TERMINAL:
                    _stop(changes, alloc, NOT_NEEDED, "Stop")
        elif job["Type"] in WHOLE:
            _on_each_node(state, job, own, changes)
        else:
            _counted(state, job, own, changes)
        found.append(changes)
    return job, found


def number_of(alloc: Shape) -> int:
    """The index in its name."""
    match = re.search(r"\[(\d+)\]$", alloc["Name"])
    return int(match.group(1)) if match else 0


def _stop(changes: Changes, alloc: Shape, why: str, counted: str, *, lost: bool = False) -> None:
    changes.stop.append((alloc, why, lost))
    changes.counts[counted] += 1


def _remaining(state: State, job: Shape, own: list[Shape], changes: Changes) -> Iterator[tuple[Shape, str]]:
    """Each allocation that still counts, and what is to become of it: `keep`, `replace`, `drop` (not replaced)."""
    for alloc in own:
        transition = alloc.get("DesiredTransition") or {}
        if alloc["DesiredStatus"] != "run":
            if transition.get("MigrateDisablePlacement"):
                yield alloc, "drop"
            continue
        if alloc["ClientStatus"] in TERMINAL:
            done = job["Type"] in {"batch", "sysbatch"} and alloc["Job"]["Version"] == job["Version"]
            # Rescheduling is off in all jobs that are tried here: a failed one keeps its place.
            yield from [(alloc, "keep")] if done or alloc["ClientStatus"] == "failed" else []
            continue
        node = state.nodes.get(alloc["NodeID"])
        if node is None or node["Status"] == "down":
            _stop(changes, alloc, LOST, "Stop", lost=True)
            yield alloc, "replace"
        elif transition.get("Migrate"):
            _stop(changes, alloc, MIGRATED, "Migrate")
            yield alloc, "drop" if transition.get("MigrateDisablePlacement") else "replace"
        elif _differs(alloc["Job"], job, changes.group):
            _stop(changes, alloc, UPDATED, "DestructiveUpdate")
            yield alloc, "replace"
        else:
            if alloc["Job"]["Version"] != job["Version"]:
                changes.update.append(alloc)
                changes.counts["InPlaceUpdate"] += 1
            else:
                changes.counts["Ignore"] += 1
            yield alloc, "keep"


def _differs(old: Shape, new: Shape, group: Shape) -> bool:
    """So that what runs has to be replaced."""
    before = next((each for each in old["TaskGroups"] if each["Name"] == group["Name"]), None)
    same = before is not None and {**before, "Count": 0} == {**group, "Count": 0}
    return not same or old["Meta"] != new["Meta"] or old["NodePool"] != new["NodePool"]


def _counted(state: State, job: Shape, own: list[Shape], changes: Changes) -> None:
    kept: list[Shape] = []
    dropped: set[int] = set()
    for alloc, fate in _remaining(state, job, own, changes):
        if fate == "keep":
            kept.append(alloc)
        elif fate == "drop":
            dropped.add(number_of(alloc))
        else:
            changes.place.append(Wanted(number_of(alloc), previous=alloc["ID"]))
    count = changes.group["Count"]
    for alloc in sorted(kept, key=number_of)[count:]:
        if alloc["ClientStatus"] not in TERMINAL:
            _stop(changes, alloc, NOT_NEEDED, "Stop")
    taken = {number_of(alloc) for alloc in kept} | {wanted.number for wanted in changes.place} | dropped
    changes.place = [wanted for wanted in changes.place if wanted.number < count]
    changes.place += [Wanted(number) for number in range(count) if number not in taken]
    changes.counts["Place"] = len(changes.place)


def _on_each_node(state: State, job: Shape, own: list[Shape], changes: Changes) -> None:
    have: set[str] = set()
    for alloc, fate in _remaining(state, job, own, changes):
        if fate != "replace":
            have.add(alloc["NodeID"])
    changes.place = [Wanted(0, node=node["ID"]) for node in state.nodes.values() if node["ID"] not in have]
