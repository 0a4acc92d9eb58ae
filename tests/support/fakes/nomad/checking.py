"""What a register refuses, in the servers' words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.support.fakes.nomad.state import Refused, Shape, State

_DURATIONS: Final = {"KillTimeout": "KillTimeout", "ShutdownDelay": "ShutdownDelay"}
_SPACE: Final = " "


def several(errors: Sequence[str]) -> str:
    """As go-multierror prints them."""
    head = "1 error occurred:" if len(errors) == 1 else f"{len(errors)} errors occurred:"
    return head + "\n" + "".join(f"\t* {error}\n" for error in errors) + "\n"


def check_types(job: Mapping[str, Any]) -> None:
    """Go decodes JSON strictly: a wrong type is a 400. Raises Refused."""
    if isinstance(job.get("Priority"), str):
        raise _undecoded("string", "Job.Job.Priority", "int")
    _check_meta(job.get("Meta"), "Job.Job.Meta")
    for group in job.get("TaskGroups") or ():
        _check_meta(group.get("Meta"), "TaskGroup.Job.TaskGroups.Meta")
        for service in group.get("Services") or ():
            _check_meta(service.get("Meta"), "Service.Job.TaskGroups.Services.Meta")
        for task in group.get("Tasks") or ():
            _check_meta(task.get("Env"), "Task.Job.TaskGroups.Tasks.Env")
            for key in _DURATIONS:
                if isinstance(task.get(key), str):
                    raise _undecoded("string", f"Task.Job.TaskGroups.Tasks.{key}", "time.Duration")


def _check_meta(table: Mapping[str, Any] | None, where: str) -> None:
    for value in (table or {}).values():
        if not isinstance(value, str):
            kind = "bool" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "object"
            raise _undecoded(kind, where, "string")


def _undecoded(kind: str, where: str, wanted: str) -> Refused:
    return Refused(400, f"json: cannot unmarshal {kind} into Go struct field {where} of type {wanted}")


def problems(job: Shape) -> list[str]:
    """Of a canonical job by itself."""
    found = []
    if not job["ID"]:
        found.append("Missing job ID")
    elif _SPACE in job["ID"]:
        found.append("Job ID contains a space")
    if job["Type"] not in {"service", "batch", "system", "sysbatch"}:
        found.append(f'Invalid job type: "{job["Type"]}"')
    if job["ParameterizedJob"] is not None and job["Type"] not in {"batch", "sysbatch"}:
        found.append('Parameterized job can only be used with "batch" or "sysbatch" scheduler')
    if not 1 <= job["Priority"] <= 100:
        found.append("job priority must be between [1, 100]")
    if job["Payload"]:
        found.append("job can't be submitted with a payload, only dispatched")
    groups = job["TaskGroups"] or []
    if not groups:
        found.append("Missing job task groups")
    names: dict[str, int] = {}
    for number, group in enumerate(groups, 1):
        if group["Name"] in names:
            found.append(f"Job task group {number} redefines '{group['Name']}' from group {names[group['Name']]}")
        names.setdefault(group["Name"], number)
        if wrong := _of_group(group):
            found.append(f"Task group {group['Name']} validation failed: {several(wrong)}")
    return found


def _of_group(group: Shape) -> list[str]:
    found = [] if group["Tasks"] else ["Missing tasks for task group"]
    for service in group["Services"] or ():
        found += [
            f"Check {check['Name']} invalid: interval ({check['Interval'] // 1_000_000}ms) cannot be lower than 1s"
            for check in service["Checks"] or ()
            if check["Interval"] < 1_000_000_000
        ]
    for task in group["Tasks"] or ():
        if wrong := _of_task(task):
            found.append(f"Task {task['Name']} validation failed: {several(wrong)}")
    return found


def _of_task(task: Shape) -> list[str]:
    found = [] if task["Driver"] else ["Missing task driver"]
    if 0 <= task["Resources"]["MemoryMB"] < 10:
        low = f"minimum MemoryMB value is 10; got {task['Resources']['MemoryMB']}"
        found.append(several([several([low])]))
    paths: set[str] = set()
    for number, template in enumerate(task["Templates"] or (), 1):
        wrong = []
        if template["DestPath"].startswith("../../"):
            wrong.append("destination escapes allocation directory")
        if template["Envvars"] and template["ChangeMode"] == "signal":
            wrong.append("cannot use signals with env var templates")
        if wrong:
            found.append(f"Template {number} validation failed: {several(wrong)}")
        if template["DestPath"] in paths:
            found.append(f"Template {number} validation failed: duplicate DestPath {template['DestPath']}")
        paths.add(template["DestPath"])
    return found


def check_place(job: Shape, state: State) -> None:
    """Namespace and node pool are there. Raises Refused."""
    if job["Namespace"] not in state.namespaces:
        wrong = f'job "{job["ID"]}" is in nonexistent namespace "{job["Namespace"]}"'
        raise Refused(500, several([wrong]))
    pools = {"default", "all"} | {node["NodePool"] for node in state.nodes.values()}
    if job["NodePool"] not in pools:
        raise Refused(500, several([f'job "{job["ID"]}" is in nonexistent node pool "{job["NodePool"]}"']))


def check_change(job: Shape, known: Shape) -> None:
    """Raises Refused: it cannot become that."""
    if known["Type"] != job["Type"]:
        raise Refused(500, f'cannot update job from type "{known["Type"]}" to "{job["Type"]}"')
    was = known["ParameterizedJob"] is not None and not known["Dispatched"]
    will = job["ParameterizedJob"] is not None
    if was and not will:
        raise Refused(500, "cannot update parameterized job to being non-parameterized")
    if will and not was:
        raise Refused(500, "cannot update non-parameterized job to being parameterized")


def check_index(body: Mapping[str, Any], known: Shape | None) -> None:
    """`EnforceIndex`. Raises Refused."""
    if not body.get("EnforceIndex"):
        return
    wanted = int(body.get("JobModifyIndex") or 0)
    start = f"Enforcing job modify index {wanted}: "
    if known is None and wanted:
        raise Refused(500, start + "job does not exist")
    if known is not None and not wanted:
        raise Refused(500, start + "job already exists")
    if known is not None and known["JobModifyIndex"] != wanted:
        raise Refused(500, start + f"job exists with conflicting job modify index: {known['JobModifyIndex']}")
