"""Evaluations and what comes of them: placements, stops, and blocked evaluations that wait for room."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

from tests.support.fakes.nomad.placing import Place, Placing, fits_job
from tests.support.fakes.nomad.reconciling import WHOLE, Changes, Wanted, reconcile
from tests.support.fakes.nomad.shapes import make_allocation, make_evaluation
from tests.support.fakes.nomad.state import Shape, State, Write, now


@dataclass
class Outcome:
    """Of one evaluation, before anything is written."""

    placed: list[tuple[Changes, Wanted, Place]] = field(default_factory=list)
    failed: dict[str, Shape] = field(default_factory=dict)
    """Group: metrics."""
    queued: dict[str, int] = field(default_factory=dict)
    classes: dict[str, bool] = field(default_factory=dict)
    escaped: bool = False


class Scheduler:
    """Works off live evaluations, one at a time, after each change of the state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._wake = asyncio.Event()
        self._held: list[re.Pattern[str]] = []
        state.watchers.append(self._wake.set)

    def hold(self, job: str) -> None:
        """Evaluations of jobs whose id matches wait until `release`."""
        self._held.append(re.compile(job))

    def release(self) -> None:
        """Nothing is held any more."""
        self._held.clear()
        self._state.room.update(self._state.nodes)
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for evaluation in self._due():
                await asyncio.sleep(0)  # its pending state is seen, as one of a real server would be
                if evaluation["ID"] in self._state.live and not self._is_held(evaluation):
                    self._process(self._state.live[evaluation["ID"]])

    def _is_held(self, evaluation: Shape) -> bool:
        return any(pattern.search(evaluation["JobID"]) for pattern in self._held)

    def _due(self) -> list[Shape]:
        """Pending ones, and blocked ones for which a node may have room now."""
        room = {self._state.nodes[i]["ComputedClass"] for i in self._state.room if i in self._state.nodes}
        self._state.room.clear()
        due = []
        for evaluation in self._state.live.values():
            eligible: dict[str, bool] = evaluation.get("ClassEligibility") or {}
            fits = room and (evaluation.get("EscapedComputedClass") or any(eligible.get(each, True) for each in room))
            if evaluation["Status"] == "pending" or fits:
                due.append(evaluation)
        return due

    def _process(self, evaluation: Shape) -> None:
        key = (evaluation["Namespace"], evaluation["JobID"])
        snapshot = self._state.index
        job, changes = reconcile(self._state, key)
        outcome = self.decide(job, changes)
        again = evaluation["Status"] == "blocked"
        if again and not outcome.placed and outcome.failed:
            return  # it stays blocked, and nobody is told
        blocked = self._blocked(evaluation, outcome, snapshot) if outcome.failed and job is not None else None
        if outcome.placed or any(each.stop or each.update for each in changes):
            self._apply(evaluation, job, changes, outcome)
        done = evaluation | {
            "Status": "complete",
            "ModifyTime": now(),
            "SnapshotIndex": snapshot,
            "QueuedAllocations": outcome.queued,
            "PlanAnnotations": plan_annotations(changes),
        }
        for name in ("ClassEligibility", "EscapedComputedClass", "StatusDescription"):
            done.pop(name, None)
        if outcome.failed:
            done["FailedTGAllocs"] = outcome.failed
        if blocked is not None:
            done["BlockedEval"] = blocked
        with self._state.write() as change:
            if not outcome.failed:
                self._cancel(change, evaluation, f'evaluation "{evaluation["ID"]}" successful')
            change.evaluation(done)
            change.settle([key], "EvaluationUpdated")

    def decide(self, job: Shape | None, changes: list[Changes]) -> Outcome:
        """Where what is wanted would go. Changes nothing."""
        outcome = Outcome()
        for each in changes:
            outcome.queued[each.group["Name"]] = 0
            if not each.place or job is None:
                continue
            placing = Placing(job, each.group, self._state.nodes.values(), self._state.allocations.values())
            placing.freed({alloc["ID"] for alloc, _, lost in each.stop if lost})
            (self._whole if job["Type"] in WHOLE else self._counted)(job, each, placing, outcome)
            if placing.escaped:
                outcome.escaped = True
            else:
                outcome.classes |= placing.classes
        return outcome

    def _counted(self, job: Shape, changes: Changes, placing: Placing, outcome: Outcome) -> None:
        name = changes.group["Name"]
        for wanted in changes.place:
            place = placing.place()
            if place is not None:
                outcome.placed.append((changes, wanted, place))
                placing.took({"ID": "", "NodeID": place.node["ID"], "ClientStatus": "pending"} | _resources(place))
                continue
            outcome.queued[name] += 1
            if name in outcome.failed:
                outcome.failed[name]["CoalescedFailures"] += 1
            else:
                outcome.failed[name] = placing.metrics

    def _whole(self, job: Shape, changes: Changes, placing: Placing, outcome: Outcome) -> None:
        """Nodes that could never run it are passed over; those that are full are waited for."""
        name = changes.group["Name"]
        fit = {node["ID"] for node in placing.feasible() if fits_job(node, job)}
        changes.place = [wanted for wanted in changes.place if wanted.node in fit]
        changes.counts["Place"] = len(changes.place)
        for wanted in changes.place:
            place = placing.place([node for node in self._state.nodes.values() if node["ID"] == wanted.node])
            if place is not None:
                outcome.placed.append((changes, wanted, place))
            else:
                outcome.queued[name] += 1
                outcome.failed[name] = placing.metrics

    def _blocked(self, evaluation: Shape, outcome: Outcome, snapshot: int) -> str | None:
        if evaluation["Status"] == "blocked":
            return None
        with self._state.write() as change:
            self._cancel(change, evaluation, "existing blocked evaluation exists for job")
            made = blocked_evaluation(evaluation, outcome) | {"SnapshotIndex": snapshot}
            change.evaluation(made)
        return str(made["ID"])

    def _cancel(self, change: Write, evaluation: Shape, why: str) -> None:
        key = (evaluation["Namespace"], evaluation["JobID"])
        for other in list(self._state.live.values()):
            own = (other["Namespace"], other["JobID"]) == key and other["ID"] != evaluation["ID"]
            if own and other["Status"] == "blocked":
                change.evaluation(other | {"Status": "canceled", "StatusDescription": why})

    def _apply(self, evaluation: Shape, job: Shape | None, changes: list[Changes], outcome: Outcome) -> None:
        with self._state.write() as change:
            change.evaluation(evaluation, "PlanResult")
            replaced: dict[str, str] = {}
            for each, wanted, place in outcome.placed:
                assert job is not None
                alloc = make_allocation(job, each.group, wanted.number, evaluation["ID"], place)
                if wanted.previous is not None:
                    alloc["PreviousAllocation"] = wanted.previous
                    replaced[wanted.previous] = alloc["ID"]
                change.allocation(alloc, "PlanResult")
            for each in changes:
                for alloc, why, lost in each.stop:
                    stopped = alloc | {"DesiredStatus": "stop", "DesiredDescription": why}
                    stopped |= {"ClientStatus": "lost"} if lost else {}
                    stopped |= {"NextAllocation": replaced[alloc["ID"]]} if alloc["ID"] in replaced else {}
                    change.allocation(stopped, "PlanResult")
                for alloc in each.update:
                    change.allocation(alloc | {"Job": job}, "PlanResult")
            change.settle([(evaluation["Namespace"], evaluation["JobID"])], "PlanResult")


def _resources(place: Place) -> Shape:
    return {"AllocatedResources": place.resources}


def plan_annotations(changes: list[Changes]) -> Shape:
    """`PlanAnnotations` of an evaluation, `Annotations` of a plan."""
    return {"DesiredTGUpdates": {each.group["Name"]: each.counts for each in changes}, "PreemptedAllocs": None}


def blocked_evaluation(evaluation: Shape, outcome: Outcome) -> Shape:
    """What waits for room, as it begins."""
    more: dict[str, Any] = {
        "FailedTGAllocs": outcome.failed,
        "PreviousEval": evaluation["ID"],
        "Status": "blocked",
        "StatusDescription": "created to place remaining allocations",
        "JobModifyIndex": evaluation.get("JobModifyIndex", 0),
    }
    if outcome.escaped:
        more["EscapedComputedClass"] = True
    elif outcome.classes:
        more["ClassEligibility"] = outcome.classes
    job = {name: evaluation[name] for name in ("Namespace", "Priority", "Type")}
    shape = make_evaluation(job | {"ID": evaluation["JobID"], "JobModifyIndex": 0}, "queued-allocs")
    return shape | more
